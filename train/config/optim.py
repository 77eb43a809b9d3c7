"""The settings of the optimizer."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from train.objectives.checks import check_finite

StorageDtype = Literal["bfloat16", "float32"]

# Adapters take about ten times the rate of whole weights ("LoRA Without Regret", Thinking Machines). TRL gives about
# 1e-4 for adapters and has 2e-5 for whole weights.
ADAPTER_LEARNING_RATE, FULL_LEARNING_RATE = 1e-4, 1e-5


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a warmup, a decay and clipping by the global norm."""

    learning_rate: float | None = None
    """Peak, reached at the end of the warmup. None: 1e-4 for adapters, 1e-5 for whole weights."""
    warmup: Annotated[int | float, tyro.conf.arg(aliases=("--optim.warmup-steps",))] = 0.03
    """Linear increase from 0: a number of steps, or a fraction of all steps such as 0.03. A warmup that the run would
    not survive is cut to half of it."""
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
        check_finite(self, "optim.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"optim.learning_rate={self.learning_rate} must be positive.")
        if not (self.warmup >= 0 and (isinstance(self.warmup, int) or self.warmup < 1)):
            raise ValueError(
                f"optim.warmup={self.warmup} must be a whole number of steps, such as 100, or a fraction of all steps "
                "below 1, such as 0.03."
            )
        if not self.weight_decay >= 0:
            raise ValueError(f"optim.weight_decay={self.weight_decay} must be 0 or more.")
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ValueError(f"optim.b1={self.b1} and optim.b2={self.b2} must be in [0, 1).")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"optim.final_fraction={self.final_fraction} must be in [0, 1].")
        if not self.eps > 0:
            raise ValueError(f"optim.eps={self.eps} must be positive; it is added to what Adam divides by.")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optim.clip_norm={self.clip_norm} must be positive; None switches clipping off.")

    def warmup_steps(self, steps: int) -> int:
        """Returns the steps of the warmup in a run of so many steps."""
        wanted = self.warmup if isinstance(self.warmup, int) else math.ceil(self.warmup * steps)
        # At a constant rate a run may be lengthened, so that a warmup beyond its end is no mistake.
        return steps // 2 if wanted >= steps and self.schedule != "constant" else wanted

    def decide(self, steps: int, *, adapters: bool) -> "OptimConfig":
        """Returns these settings with the rate and the steps of the warmup decided."""
        default = ADAPTER_LEARNING_RATE if adapters else FULL_LEARNING_RATE
        rate = default if self.learning_rate is None else self.learning_rate
        return dataclasses.replace(self, learning_rate=rate, warmup=self.warmup_steps(steps))
