"""The settings of the losses of the multi-token-prediction (MTP) head, which every objective may add to its own."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from qwen35_jax.config import TextConfig
from train.objectives.checks import check_finite

MtpGradient = Literal["joint", "detach_trunk", "head_only"]


@dataclass(frozen=True)
class MtpLossConfig:
    """The loss of the multi-token-prediction head, which is added to the main loss.

    ``gradient`` says what the MTP loss may change; the main loss always reaches everything but the MTP block.
    ``joint``: trunk, embeddings, output head and MTP block. ``detach_trunk``: not the trunk, since no gradient passes
    into the hidden states that the MTP block reads, and not the vision tower. ``head_only``: the MTP block alone, that
    is, parameters whose name begins with ``mtp.`` and their adapters.
    """

    weight: float = 0.1
    """Factor of the MTP loss, split evenly over its steps; 0 leaves the MTP block untrained and unchanged."""
    num_steps: int = 1
    """How many tokens beyond the next one are predicted. Each step reads the output of the one before."""
    gradient: MtpGradient = "joint"
    """Which parameters the MTP loss trains."""

    def __post_init__(self):
        check_finite(self, "mtp.")
        if self.weight < 0:
            raise ValueError(f"mtp.weight={self.weight} is negative; give 0 to train without the MTP loss.")
        if self.num_steps < 1:
            raise ValueError(f"mtp.num_steps={self.num_steps} must be at least 1; mtp.weight=0 turns MTP off.")

    @property
    def steps(self) -> int:
        """How often the MTP head runs for each batch."""
        return self.num_steps if self.weight else 0

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each step's term: ``mtp_loss`` predicts two tokens ahead, ``mtp_loss_2`` three, and so on."""
        names = ["mtp_loss" if step == 1 else f"mtp_loss_{step}" for step in range(1, self.steps + 1)]
        return dict.fromkeys(names, self.weight / self.num_steps)

    def check_trained(self, groups: Collection[str], *, option: str) -> None:
        """Checks that no loss misses all that trains, and nothing that trains misses all losses.

        Args:
          groups: what trains, by groups of ``qwen35_jax.targets``.
          option: which option chose it, for the message.

        Raises:
          ValueError: one does, so that it would be useless without a word.
        """
        if self.weight == 0:
            if "mtp" in groups:
                raise ValueError(
                    f"{option} has 'mtp', but mtp.weight=0 never trains it; remove it or raise mtp.weight."
                )
            return
        reach = {"joint": set(groups), "detach_trunk": {"mtp", "embed", "head"}, "head_only": {"mtp"}}
        if not reach[self.gradient] & set(groups):
            raise ValueError(
                f"mtp.gradient={self.gradient!r} reaches nothing that {option} chooses; "
                f"add 'mtp' to it, or use mtp.gradient='joint', or mtp.weight=0."
            )

    def check_head(self, text: TextConfig, folder: Path) -> None:
        """Checks that there is an MTP head for the loss.

        Raises:
          ValueError: there is none.
        """
        if self.weight and not text.mtp.num_hidden_layers:
            raise ValueError(
                f"{folder} has no MTP head (mtp.* tensors), but mtp.weight={self.weight}; set mtp.weight=0 or "
                "start from a checkpoint that has one."
            )


@runtime_checkable
class _HasMtp(Protocol):
    @property
    def mtp(self) -> MtpLossConfig: ...


class WithMtp:
    """What the settings of an objective with an MTP loss, its field ``mtp``, tell the rest of the trainer."""

    @property
    def mtp_steps(self: _HasMtp) -> int:
        """How often the MTP head runs for each batch."""
        return self.mtp.steps

    @property
    def trains_mtp(self: _HasMtp) -> bool:
        """Whether a run may train the MTP head; without its loss, weight decay alone would change it."""
        return self.mtp.weight > 0

    def check_trained(self: _HasMtp, groups: Collection[str], *, option: str) -> None:
        """Raises a ValueError if a loss misses all that trains, or what trains misses all losses."""
        self.mtp.check_trained(groups, option=option)

    def check_model(self: _HasMtp, text: TextConfig, folder: Path) -> None:
        """Raises a ValueError if the MTP loss has no MTP head."""
        self.mtp.check_head(text, folder)
