"""What decides the numbers of a run.

A field that is declared with ``compare=False`` is judged by what it leads to: the path of a model by the fingerprint
of its files, where data lies and how it is read by the identity of the data.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from qwen35_jax.hf.source import ModelSource
from qwen35_jax.lora import LoraConfig
from train.config.data import DataConfig
from train.config.health import HealthConfig
from train.objectives.sft import Supervised

StorageDtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a warmup, a decay and clipping by the global norm."""

    learning_rate: float = 1e-4
    """Peak, reached at the end of the warmup."""
    warmup_steps: int = 0
    """Steps of linear increase from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """What follows the warmup."""
    final_fraction: float = 0.0
    """Fraction of the peak that ``cosine`` and ``linear`` end at."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; norms, biases and decay rates have none."""
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; None switches clipping off."""
    first_moment_dtype: StorageDtype = "float32"
    """Dtype in which Adam's mean of gradients is held. With bfloat16 a trained parameter takes 2 bytes less, but the
    fraction 1 - b1 of it that a step changes is rounded to 8 bits. The mean of squares is always float32: a step
    changes it by a fraction 1 - b2, most of which bfloat16 would round away."""

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"optim.learning_rate={self.learning_rate} must be positive.")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(
                f"optim.warmup_steps={self.warmup_steps} and optim.weight_decay={self.weight_decay} must be 0 or more."
            )
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ValueError(f"optim.b1={self.b1} and optim.b2={self.b2} must be in [0, 1).")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"optim.final_fraction={self.final_fraction} must be in [0, 1].")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optim.clip_norm={self.clip_norm} must be positive; None switches clipping off.")


@dataclass(frozen=True)
class Recipe:
    """What decides the numbers of a run: a run resumes with the same recipe only."""

    model: ModelSource
    """The checkpoint that training starts from. By default weights are held in float32 when they train."""
    data: DataConfig
    steps: int | None = None
    """Updates of the weights; None trains ``data.epochs``."""
    optim: OptimConfig = OptimConfig()
    lora: LoraConfig | None = None
    """Adapters to train; None trains every weight of the text model."""
    # A second kind of objective makes this a union; a run file's choice cannot be changed by a flag.
    objective: Annotated[Supervised, tyro.conf.arg(name="")] = field(default_factory=Supervised)
    """What is minimised."""
    health: HealthConfig = field(default_factory=HealthConfig)
    accumulation: int = 1
    """Micro-batches per step: a batch is cut into this many, which are computed one after the other."""
    seed: int = 0
    """Seeds new adapters and dropout. The order of the data has its own: ``data.seed``."""

    def __post_init__(self):
        if self.model.adapter is not None:
            raise ValueError(
                f"model.adapter={self.model.adapter!r}: training does not go on from an adapter; merge it into its "
                "base with `qwen35 merge` and give the merged checkpoint as model.path."
            )
        if self.steps is None and self.data.epochs is None:
            raise ValueError("neither steps nor data.epochs is given; say with --steps or --data.epochs when to end.")
        for name in ("steps", "accumulation"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.steps is not None and self.optim.schedule != "constant" and self.steps <= self.optim.warmup_steps:
            raise ValueError(
                f"steps={self.steps} ends inside the warmup of {self.optim.warmup_steps} steps; "
                "raise steps or lower optim.warmup_steps."
            )
        if self.data.sequences_per_batch % self.accumulation:
            raise ValueError(
                f"data.sequences_per_batch={self.data.sequences_per_batch} cannot be cut into "
                f"accumulation={self.accumulation} micro-batches; make it a multiple of {self.accumulation}."
            )
        self.objective.check_lora(self.lora)

    @property
    def num_steps(self) -> int:
        """The steps of a run whose epochs have been counted."""
        assert self.steps is not None, "the epochs are counted before anything asks for the number of steps"
        return self.steps

    @property
    def param_dtype(self) -> StorageDtype:
        """Dtype in which the weights of the model are held."""
        return self.model.param_dtype or ("float32" if self.lora is None else self.model.dtype)
