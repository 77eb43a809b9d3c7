"""The settings of a training run: frozen dataclasses, checked when they are built.

A run file in ``configs/`` returns an ``SFTConfig``; the command line overrides its fields by dotted name.
What needs a file or a device is checked by ``train.sft`` before anything compiles.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from qwen35_jax.distributed import ProcessConfig
from qwen35_jax.layers.recompute import Remat
from qwen35_jax.lora import LoraConfig
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.sharding import MeshConfig
from train.data.config import DataConfig, Source
from train.health import HealthConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "HealthConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelSource",
    "MtpLossConfig",
    "OptimConfig",
    "ProcessConfig",
    "SFTConfig",
    "Source",
]

StorageDtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class ModelSource:
    """The checkpoint that training starts from."""

    path: str
    """A Hugging Face folder with its tokenizer, or a hub id."""
    dtype: StorageDtype = "bfloat16"
    """Dtype of the matrix products."""
    param_dtype: StorageDtype | None = None
    """Dtype in which the weights are held; by default float32 when they train, else ``dtype``."""
    remat: Remat = "block"
    """What the backward pass keeps of each period of layers: everything (``none``), its input alone (``block``), that
    and the results of products with weights (``save_dots``), or its input in host memory (``offload``, on TPU)."""


@dataclass(frozen=True)
class MtpLossConfig:
    """The loss of the multi-token-prediction head, which is added to the main loss.

    ``gradient`` says what the MTP loss may change (the main loss always reaches everything else):
    ``joint``: trunk, embeddings, output head and MTP block; ``detach_trunk``: not the trunk, since no
    gradient passes into the hidden states that the MTP block reads; ``head_only``: the MTP block alone,
    that is, parameters whose name begins with ``mtp.`` and their adapters.
    """

    weight: float = 0.1
    """Factor of the MTP loss, split evenly over its steps; 0 leaves the MTP block untrained and unchanged."""
    num_steps: int = 1
    """How many tokens beyond the next one are predicted, each step reading the output of the one before."""
    gradient: Literal["joint", "detach_trunk", "head_only"] = "joint"
    """Which parameters the MTP loss trains."""

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"mtp.weight={self.weight} is negative; give 0 to train without the MTP loss.")
        if self.num_steps < 1:
            raise ValueError(f"mtp.num_steps={self.num_steps} must be at least 1; mtp.weight=0 turns MTP off.")


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
    """Dtype in which Adam's mean of gradients is held: bfloat16 saves 2 bytes a trained parameter, and
    rounds to 8 bits what a step changes by the fraction 1 - b1. The mean of squares is float32 always: a step changes
    it by a fraction 1 - b2, which bfloat16 mostly rounds away."""

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
class CheckpointConfig:
    """When the state is saved. The last step always is, and the one after which SIGTERM ends the run."""

    every: int = 100
    """Steps between checkpoints."""
    keep: int = 2
    """How many are kept; with 2, a damaged one has a predecessor to fall back on."""

    def __post_init__(self):
        if self.every < 1 or self.keep < 1:
            raise ValueError(f"checkpoint.every={self.every} and checkpoint.keep={self.keep} must be at least 1.")


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on conversations with the main and the MTP loss."""

    model: ModelSource
    data: DataConfig
    steps: int
    """Updates of the weights."""
    optim: OptimConfig = OptimConfig()
    lora: LoraConfig | None = None
    """Adapters to train; None trains every weight of the text model."""
    mtp: MtpLossConfig = MtpLossConfig()
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = CheckpointConfig()
    health: HealthConfig = field(default_factory=HealthConfig)
    processes: ProcessConfig = field(default_factory=ProcessConfig)
    accumulation: int = 1
    """Micro-batches per step: the rows of a batch are cut into this many parts, one after the other in memory."""
    loss_chunk: int = 256
    """Positions of each row whose logits exist at once; memory only."""
    seed: int = 0
    """Seeds new adapters and dropout. The order of the data has its own: ``data.seed``."""
    evaluate: Callable[[Qwen35, Tokenizer], Mapping[str, float]] | None = None
    """Called with the model every ``evaluate_every`` steps, by all processes, from the run file only; the figures it
    returns stand in that step's metrics. It must not keep the model, whose arrays the next step consumes."""
    evaluate_every: int | None = None
    """Steps between evaluations."""
    profile: str | None = None
    """``FIRST:LAST``: writes a trace of these steps, both included, into ``profile/`` (for XProf or Perfetto)."""
    export: bool = True
    """Write ``export/`` at the end: a Hugging Face folder, or the PEFT adapter."""
    workdir: str | None = None
    """Where everything of the run is written; by default ``runs/`` and the name of the run file. On several hosts it
    lies on a disk, or a mounted bucket, that all of them see under this path."""
    plan: str | None = None
    """Train nothing; print what the run needs on these TPUs, such as ``v5e:2x4``."""
    plan_json: str | None = None
    """A new file for the plan as JSON."""
    plan_price: float | None = None
    """Price of a chip for an hour, for the plan."""

    def __post_init__(self):
        _check_sizes(self)
        _check_mtp_trains_something(self)
        if (self.evaluate is None) != (self.evaluate_every is None) or (self.evaluate_every or 1) < 1:
            raise ValueError(
                f"evaluate={self.evaluate} and evaluate_every={self.evaluate_every}: give both, the second at least "
                "1, or neither; evaluate is a function in the run file."
            )
        if self.profile is not None:
            last = parse_steps(self.profile)[-1]
            if last > self.steps:
                raise ValueError(f"profile={self.profile!r} goes beyond the last step; end it by steps={self.steps}.")
        if self.workdir is not None and "://" in self.workdir:
            raise ValueError(
                f"workdir={self.workdir!r} is an address, but a path is needed; mount the bucket (Cloud Storage FUSE) "
                "and give the path of the mount."
            )
        if self.plan is None and (self.plan_json, self.plan_price) != (None, None):
            raise ValueError("plan_json and plan_price belong to a plan; name its TPUs with --plan, such as v5e:2x4.")

    @property
    def param_dtype(self) -> StorageDtype:
        """Dtype in which the weights of the model are held."""
        return self.model.param_dtype or ("float32" if self.lora is None else self.model.dtype)


def parse_steps(steps: str) -> range:
    """Returns the steps of ``FIRST:LAST``, both included.

    Raises:
      ValueError: not two numbers in this order, from 1.
    """
    first, _, last = steps.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"profile={steps!r} names no steps; give FIRST:LAST, such as 10:12.")
    return range(int(first), int(last) + 1)


def _check_sizes(cfg: SFTConfig) -> None:
    for name in ("steps", "accumulation", "loss_chunk"):
        if getattr(cfg, name) < 1:
            raise ValueError(f"{name}={getattr(cfg, name)} must be at least 1.")
    if cfg.optim.schedule != "constant" and cfg.steps <= cfg.optim.warmup_steps:
        raise ValueError(
            f"steps={cfg.steps} ends inside the warmup of {cfg.optim.warmup_steps} steps; "
            "raise steps or lower optim.warmup_steps."
        )
    if cfg.data.rows_per_batch % cfg.accumulation:
        raise ValueError(
            f"data.rows_per_batch={cfg.data.rows_per_batch} cannot be cut into accumulation={cfg.accumulation} parts; "
            f"make it a multiple of {cfg.accumulation}."
        )


def _check_mtp_trains_something(cfg: SFTConfig) -> None:
    """With adapters, a loss whose gradient meets no adapter (or the reverse) would be silently useless."""
    if cfg.lora is None:
        return
    targets = set(cfg.lora.targets)
    if cfg.mtp.weight == 0:
        if "mtp" in targets:
            raise ValueError("lora.targets has 'mtp', but mtp.weight=0 never trains it; remove it or raise mtp.weight.")
        return
    reach = {"joint": targets, "detach_trunk": targets & {"mtp", "embed"}, "head_only": targets & {"mtp"}}
    if not reach[cfg.mtp.gradient]:
        raise ValueError(
            f"mtp.gradient={cfg.mtp.gradient!r} reaches none of lora.targets={cfg.lora.targets}; "
            "add 'mtp' to lora.targets, or use mtp.gradient='joint', or mtp.weight=0."
        )
