"""What decides the numbers of a run.

A field that is declared with ``compare=False`` is judged by what it leads to: the path of a model by the fingerprint
of its files, where data lies and how it is read by the identity of the data.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from qwen35_jax.hf.source import ModelSource
from qwen35_jax.lora import LoraConfig
from qwen35_jax.targets import ALL_LINEAR, VISION_GROUPS, check_words
from train.config.data import DataConfig
from train.config.health import HealthConfig
from train.config.optim import OptimConfig, StorageDtype
from train.objectives.distill import Distillation
from train.objectives.sft import Supervised

EVERYTHING = "all"


@dataclass(frozen=True)
class Recipe:
    """What decides the numbers of a run: a run resumes with the same recipe only."""

    model: ModelSource
    """The checkpoint that training starts from. By default weights are held in float32 when they train."""
    data: DataConfig
    steps: int | None = None
    """Updates of the weights; None trains ``data.epochs``."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig | None = None
    """Adapters to train; None trains the weights that ``train`` names, or the adapter of ``model.adapter``."""
    train: tuple[str, ...] = (EVERYTHING,)
    """Weights to train where there are no adapters: ``all``, or groups, names and regular expressions as for adapters,
    such as ``mtp``, ``embed_tokens`` or ``model.*norm.weight``. ``all`` means decoder and MTP head; the vision tower
    trains too with ``all tower merger``."""
    tune: Literal["full", "lora"] | None = field(default=None, compare=False)
    """Trains whole weights or adapters, whatever the run file says. The learning rate is then the default of that kind,
    unless it is given too. With ``lora`` there are the options ``--lora.*``."""
    branch_from: str | None = None
    """``RUN@STEP``: begin with the trained weights of that step of another run, and with its optimizer and its place in
    the data where they fit. Steps count from 1 again."""
    # The run file chooses the kind; flags change its settings.
    objective: Annotated[Supervised | Distillation, tyro.conf.AvoidSubcommands, tyro.conf.arg(name="")] = field(
        default_factory=Supervised
    )
    """What is minimised."""
    health: HealthConfig = field(default_factory=HealthConfig)
    accumulation: int = 1
    """Micro-batches per step: a batch is cut into this many, which are computed one after the other."""
    seed: int = 0
    """Seeds new adapters and dropout. The order of the data has its own: ``data.seed``."""

    def __post_init__(self):
        self._apply_tune()
        if self.steps is None and self.data.epochs is None:
            raise ValueError("neither steps nor data.epochs is given; say with --steps or --data.epochs when to end.")
        for name in ("steps", "accumulation"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.data.sequences_per_batch % self.accumulation:
            raise ValueError(
                f"data.sequences_per_batch={self.data.sequences_per_batch} cannot be cut into "
                f"accumulation={self.accumulation} micro-batches; make it a multiple of {self.accumulation}."
            )
        check_words(self.train, "train")
        more = {*self.train} - {EVERYTHING, *VISION_GROUPS}
        if not self.train or ALL_LINEAR in self.train or (EVERYTHING in self.train and more):
            raise ValueError(
                f"train={list(self.train)} names no weights; give {EVERYTHING}, alone or with "
                f"{' and '.join(VISION_GROUPS)}, or groups, names and regular expressions."
            )
        if self.trains_adapters and self.train != (EVERYTHING,):
            raise ValueError(
                f"train={list(self.train)} chooses among whole weights, but this run trains adapters; choose their "
                "layers by --lora.targets, or train whole weights with --tune full."
            )
        self._check_own_base()
        self._check_tower()
        if self.branch_from is not None and not re.fullmatch(r".+@\d+", self.branch_from):
            raise ValueError(f"branch_from={self.branch_from!r} names no step; give RUN@STEP, such as runs/first@100.")

    @property
    def kind(self) -> Literal["full", "lora"]:
        """What trains: whole weights or adapters."""
        return "lora" if self.trains_adapters else "full"

    @property
    def trains_adapters(self) -> bool:
        """Whether adapters train, rather than whole weights."""
        return self.lora is not None or self.model.adapter is not None

    @property
    def num_steps(self) -> int:
        """The steps of a run whose epochs have been counted."""
        assert self.steps is not None, "the epochs are counted before anything asks for the number of steps"
        return self.steps

    @property
    def param_dtype(self) -> StorageDtype:
        """Dtype in which the weights of the model are held."""
        return self.model.param_dtype or (self.model.dtype if self.trains_adapters else "float32")

    @property
    def trained_lora(self) -> LoraConfig | None:
        """The adapters without those of an MTP head that no loss trains, unless they were asked for by name."""
        lora = self.lora
        if lora is None or self.objective.trains_mtp or "mtp" in (*lora.targets, *lora.exclude):
            return lora
        return dataclasses.replace(lora, exclude=(*lora.exclude, "mtp"))

    def decide(self) -> "Recipe":
        """Returns these settings with what defaults leave open decided: rate, warmup, adapters that would not train.

        What is decided already stays as it is.
        """
        optim = self.optim.decide(self.num_steps, adapters=self.trains_adapters)
        return dataclasses.replace(self, optim=optim, lora=self.trained_lora)

    def _check_own_base(self) -> None:
        """Checks that a teacher that shares the arrays of the student keeps them."""
        objective = self.objective
        if isinstance(objective, Distillation) and objective.teacher.shares_student and not self.trains_adapters:
            raise ValueError(
                "teacher.own_base shares the weights of the base, but this run trains them; train adapters with "
                f"--tune lora, or load the base a second time with --teacher.path {self.model.path}."
            )

    def _check_tower(self) -> None:
        """Checks that a run of text, which loads no vision tower, does not train it."""
        option, words = ("train", self.train) if self.lora is None else ("lora.targets", self.lora.targets)
        if self.data.vision is None and (named := {*VISION_GROUPS} & {*words}):
            raise ValueError(
                f"{option} has {min(named)!r}, but a run of text loads no vision tower; give data.vision, or leave it "
                "out."
            )

    def _apply_tune(self) -> None:
        if self.tune == "full" and self.model.adapter is not None:
            raise ValueError(
                f"tune=full cannot go on from model.adapter={self.model.adapter!r}; merge it into its base with "
                "`qwen35 merge` and give the merged checkpoint as --model.path."
            )
        if self.tune == "full":
            object.__setattr__(self, "lora", None)
        elif self.tune == "lora" and self.lora is None:
            object.__setattr__(self, "lora", LoraConfig())
        object.__setattr__(self, "tune", None)
