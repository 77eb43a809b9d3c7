"""The processes that share out the documents of a run."""

import dataclasses
from typing import Any

import jax

from qwen35_jax import distributed


@dataclasses.dataclass(frozen=True)
class Team:
    """Which member this process is, and how many there are. Each has an engine of its own."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_all_processes(cls) -> "Team":
        """Makes every process a member."""
        return cls(jax.process_index(), jax.process_count())

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all have found."""
        return self.index == 0

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all members, in their order; all of them must call it. JSON must be able to hold it."""
        return distributed.gather(value) if self.count > 1 else [value]
