"""What an engine counts while it runs."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

LENGTHS = (1024, 4096, 16384, 65536, 262144)
"""Upper bounds of the context lengths by which drafts are counted."""


@dataclasses.dataclass
class Drafted:
    """Drafts that were proposed, and those that were accepted."""

    proposed: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float | None:
        """The share that was accepted; None if there was no draft."""
        return self.accepted / self.proposed if self.proposed else None


@dataclasses.dataclass
class Metrics:
    """Counts since the engine was made.

    Attributes:
      requests: those that were submitted.
      finished: how many ended for each reason.
      prompt_tokens: tokens of their prompts.
      prefilled_tokens: those that were computed; a fork shares the others, a preemption computes them again.
      scored_tokens: tokens that ``score`` gave log-probabilities of.
      generated_tokens: tokens of completions; what is computed again after a preemption is not counted again.
      preemptions: requests that gave their pages back and began again.
      forks: requests that began with what another one had read.
      tower_runs: runs of the vision tower; requests with the same images and videos share one.
      patches: patches that it has read.
      decode_calls, decode_steps: calls of the device, and steps in them.
      drafts: all drafts; ``by_position`` from 0, ``by_section``, and ``by_length`` of the context (``LENGTHS``).
    """

    requests: int = 0
    finished: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    scored_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    forks: int = 0
    tower_runs: int = 0
    patches: int = 0
    decode_calls: int = 0
    decode_steps: int = 0
    drafts: Drafted = dataclasses.field(default_factory=Drafted)
    by_position: dict[int, Drafted] = dataclasses.field(default_factory=dict)
    by_section: dict[str, Drafted] = dataclasses.field(default_factory=dict)
    by_length: dict[int, Drafted] = dataclasses.field(default_factory=dict)

    def count_drafts(
        self, proposed: np.ndarray, accepted: np.ndarray, thinking: np.ndarray, lengths: Sequence[int]
    ) -> None:
        """Adds the drafts of a call.

        Args:
          proposed, accepted: drafts of each slot and step [B, S].
          thinking: whether the slot was inside a think block [B, S].
          lengths: context of each slot when the call began.
        """
        if not proposed.any():
            return
        _add(self.drafts, int(proposed.sum()), int(accepted.sum()))
        for position in range(int(proposed.max())):
            counts = int((proposed > position).sum()), int((accepted > position).sum())
            _add(self.by_position.setdefault(position, Drafted()), *counts)
        for section, where in (("thinking", thinking), ("answer", ~thinking)):
            _add(self.by_section.setdefault(section, Drafted()), int(proposed[where].sum()), int(accepted[where].sum()))
        for slot, length in enumerate(lengths):
            if proposed[slot].any():
                bound = next((bound for bound in LENGTHS if length <= bound), LENGTHS[-1])
                _add(self.by_length.setdefault(bound, Drafted()), int(proposed[slot].sum()), int(accepted[slot].sum()))


def _add(drafted: Drafted, proposed: int, accepted: int) -> None:
    drafted.proposed += proposed
    drafted.accepted += accepted
