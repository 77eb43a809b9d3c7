"""Packs documents into sequences of a fixed length, and sequences into batches.

Letters: B sequences, T tokens of a sequence.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from train.batch import TOKEN_FIELDS, Fields, HostBatch
from train.data.documents import Documents
from train.data.masking import Example

Key = tuple[int, int]
"""Which document an example is: its position in the order of the run, and its piece if a text was cut."""

PackedSequence = list[tuple[Key, Example]]


@runtime_checkable
class Signals(Protocol):
    """Further values for the tokens of documents that are read when a batch is laid out, such as a teacher's."""

    @property
    def fields(self) -> Fields:
        """What they add to a batch."""
        ...

    def check_documents(self, documents: Documents) -> None:
        """Checks that the values were made for documents of the same sources, whose rows have been checked.

        Raises:
          ValueError: they were not.
        """
        ...

    def signals_of(self, example: Example) -> Mapping[str, np.ndarray]:
        """Returns the values for a document, tokens along the first axis.

        Raises:
          ValueError: there are none for it.
        """
        ...


class Packer:
    """First fit with a bounded number of open sequences.

    A document goes into the oldest open sequence that has room for it. If none has room and no more may be opened, the
    fullest sequence is closed. Which sequence a document goes to depends on the documents before it alone.

    Waste is bounded: of two sequences that are open together at most one is half empty, since otherwise the documents
    of the later one would have gone into the earlier one. So with two open sequences or more, every closed sequence is
    more than half full, and its free space is smaller than the document that closed it. Only `flush` may close one
    sequence that is much emptier.
    """

    def __init__(self, sequence_length: int, open_sequences: int):
        self._sequence_length, self._open_sequences = sequence_length, open_sequences
        self._open: list[tuple[PackedSequence, int]] = []

    @property
    def open(self) -> list[PackedSequence]:
        """The unfinished sequences, the oldest first."""
        return [sequence for sequence, _ in self._open]

    def restore(self, sequences: Sequence[PackedSequence]) -> None:
        """Takes unfinished sequences in place of its own."""
        self._open = [(list(sequence), used(sequence)) for sequence in sequences]

    def add(self, key: Key, example: Example) -> list[PackedSequence]:
        """Places one document of at most ``sequence_length`` tokens and returns the sequences that this closed."""
        length = len(example)
        assert 0 < length <= self._sequence_length, (length, self._sequence_length)
        closed = []
        fits = (i for i, (_, filled) in enumerate(self._open) if filled + length <= self._sequence_length)
        place = next(fits, None)
        if place is None:
            if len(self._open) == self._open_sequences:
                fullest = int(np.argmax([filled for _, filled in self._open]))
                closed.append(self._open.pop(fullest)[0])
            place = len(self._open)
            self._open.append(([], 0))
        sequence, filled = self._open[place]
        sequence.append((key, example))
        self._open[place] = (sequence, filled + length)
        if filled + length == self._sequence_length:
            closed.append(self._open.pop(place)[0])
        return closed

    def flush(self) -> list[PackedSequence]:
        """Closes and returns every open sequence, the oldest first."""
        sequences, self._open = self.open, []
        return sequences


def used(sequence: PackedSequence) -> int:
    """Counts the tokens in a sequence."""
    return sum(len(example) for _, example in sequence)


def make_batch(
    sequences: Sequence[PackedSequence],
    *,
    sequence_length: int,
    pad_token_id: int,
    fields: Fields = TOKEN_FIELDS,
    signals: Signals | None = None,
    where: Callable[[Key], str] = str,
) -> HostBatch:
    """Lays sequences, which may be empty, out as arrays [B, T, ...]; their ends are padding.

    ``segment_ids`` count the documents of a sequence from 1. The values of the other fields are those of the examples.
    Padding is the pad token in ``input_ids`` and 0 elsewhere.

    Args:
      signals: further values, whose fields come on top. They are read document by document, into the batch.
      where: names the file and the line of a document, for messages.

    Raises:
      ValueError: a field has no value for each token, or there are no signals for a document.
    """
    if signals is not None:
        fields = {**fields, **signals.fields}
    if other := [name for name, field in fields.items() if not field.is_per_token]:
        raise ValueError(f"documents cannot fill the fields {', '.join(other)}, which have no value for each token.")
    batch = {
        name: np.full(
            field.shape(len(sequences), sequence_length), pad_token_id if name == "input_ids" else 0, field.dtype
        )
        for name, field in fields.items()
    }
    for s, sequence in enumerate(sequences):
        start = 0
        for segment, (key, example) in enumerate(sequence, start=1):
            values = example.values() | {"segment_ids": segment}
            if signals is not None:
                values |= _read(signals, key, example, where)
            for name, array in batch.items():
                array[s, start : start + len(example)] = values[name]
            start += len(example)
    return batch


def _read(signals: Signals, key: Key, example: Example, where: Callable[[Key], str]) -> Mapping[str, np.ndarray]:
    try:
        return signals.signals_of(example)
    except ValueError as err:
        raise ValueError(f"{where(key)}: {err}") from err
