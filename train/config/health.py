"""The settings that say which steps are unsound, and what becomes of them."""

from dataclasses import dataclass
from typing import Literal

from train.objectives.checks import check_finite


@dataclass(frozen=True)
class HealthConfig:
    """What to do with a step whose loss or gradient is not finite or too large.

    Its update is never applied, and ``unsound/`` in the run directory names the documents of its batch.
    """

    policy: Literal["stop", "skip"] = "stop"
    """``stop`` the run with an error, or ``skip`` the step: the state stays as it is and the run goes on."""
    max_skips: int = 10
    """Under ``skip``: how many steps in a row may be skipped before the run stops after all."""
    max_grad_norm: float | None = None
    """Largest norm of the gradient before clipping; None for no limit."""
    grad_norm_factor: float | None = None
    """The same as a multiple of the running mean of that norm over the last updates (about 32)."""
    loss_factor: float | None = None
    """Largest loss as a multiple of its running mean."""

    def __post_init__(self):
        check_finite(self, "health.")
        if self.policy not in ("stop", "skip"):
            raise ValueError(f"health.policy={self.policy!r} is unknown; choose stop or skip.")
        if self.max_skips < 1:
            raise ValueError(f"health.max_skips={self.max_skips} must be at least 1; health.policy=stop allows none.")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ValueError(f"health.max_grad_norm={self.max_grad_norm} must be positive; None sets no limit.")
        for name in ("grad_norm_factor", "loss_factor"):
            value = getattr(self, name)
            if value is not None and value <= 1:
                raise ValueError(f"health.{name}={value} must be above 1; None sets no limit.")
