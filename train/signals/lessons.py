"""What a teacher is asked: the batches of the run's first epoch, then those of its validation data.

They are the batches that the run trains on, packed as there, so that a stored signal equals the live one of the first
epoch bit for bit. A row that the mixture draws again within the epoch is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from qwen35_jax.liveness import exchange
from qwen35_jax.processing import Tokenizer
from train.batch import HostBatch
from train.config.data import DataConfig
from train.data.documents import Document, Documents
from train.data.packing import PackedSequence
from train.data.pipeline import BatchIterator, merge_states
from train.data.validation import ValidationData, read_validation
from train.data.vision import VisionReader


class EveryRow(Documents):
    """Documents of which each row comes once: nothing is at the positions that draw a row again."""

    def load(self, positions: Sequence[int]) -> list[Document]:
        first = [self._is_first(position) for position in positions]
        loaded = iter(super().load([position for position, is_first in zip(positions, first, strict=True) if is_first]))
        return [next(loaded) if is_first else [] for is_first in first]

    def _is_first(self, position: int) -> bool:
        source, draw = self._mixture[position]
        return draw < len(self.sources[source])


class Lesson(NamedTuple):
    """One batch."""

    packed: list[PackedSequence]
    """The documents in each sequence that this process feeds."""
    batch: HostBatch
    state: dict[str, Any]
    """Where the data stand after it, in JSON values."""


class Lessons:
    """Yields the batches, from any position. All processes of the run take them together."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, sequences: range, vision: VisionReader | None = None):
        """Opens and checks the data.

        Args:
          sequences: the sequences of every batch that this process feeds.
          vision: reads images and videos, where ``config.vision`` asks for them.

        Raises:
          ValueError: the data cannot be used.
        """
        self.batches = BatchIterator(EveryRow(replace(config, epochs=1), tokenizer, vision), tokenizer, sequences)
        self.validation: ValidationData | None = read_validation(config, tokenizer, sequences, self.batches.corpus)
        self._validated: int | None = None

    @property
    def documents(self) -> list[Documents]:
        """The documents of training and, where they are others, of validation."""
        others = [] if self.validation is None else [self.validation.documents]
        return [self.batches.corpus, *(each for each in others if each is not self.batches.corpus)]

    def resume(self, states: Sequence[dict[str, Any]]) -> None:
        """Goes on from the states of all processes that feed sequences, of the same moment.

        Raises:
          ValueError: they belong to other data or settings.
        """
        self.batches.set_state(merge_states([state["training"] for state in states]))
        self._validated = states[0]["validation"]

    def __iter__(self) -> Iterator[Lesson]:
        while self._validated is None and (batch := self._next_of_training()) is not None:
            yield Lesson(self.batches.packed, batch, self._state())
        if self.validation is None:
            return
        held = self.validation.batches
        for number in range(self._validated or 0, len(held)):
            self._validated = number + 1
            yield Lesson(held.packed[number], held[number], self._state())

    def _next_of_training(self) -> HostBatch | None:
        """Returns the next batch, as long as any process has documents in it."""
        batch = next(self.batches, None)
        has_documents = batch is not None and any(self.batches.packed)
        return batch if any(exchange(has_documents)) else None

    def _state(self) -> dict[str, Any]:
        return {"training": self.batches.get_state(), "validation": self._validated}
