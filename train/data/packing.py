"""Packs documents into sequences of a fixed length, and sequences into batches.

Letters: B sequences, T tokens of a sequence.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from train.batch import TOKEN_FIELDS, Fields, HostBatch
from train.data.documents import Documents
from train.data.masking import Example
from train.data.vision import VisionReader

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
    fullest sequence is closed. Which sequence a document goes to depends on the documents before it alone. Where there
    are images, a sequence has room for so many tokens and so many patches, and the scarcer of the two says how full it
    is.

    Waste is bounded: of two sequences that are open together at most one is half empty, since otherwise the documents
    of the later one would have gone into the earlier one. So with two open sequences or more, every closed sequence is
    more than half full, and its free space is smaller than the document that closed it. Only `flush` may close one
    sequence that is much emptier.
    """

    def __init__(self, sequence_length: int, open_sequences: int, patches: int = 1):
        """Takes the tokens of a sequence, how many sequences are open together, and the patches of a sequence."""
        self._sequence_length, self._patches, self._open_sequences = sequence_length, patches, open_sequences
        self._open: list[tuple[PackedSequence, int, int]] = []

    @property
    def open(self) -> list[PackedSequence]:
        """The unfinished sequences, the oldest first."""
        return [sequence for sequence, *_ in self._open]

    def restore(self, sequences: Sequence[PackedSequence]) -> None:
        """Takes unfinished sequences in place of its own."""
        self._open = [(list(sequence), used(sequence), _used_patches(sequence)) for sequence in sequences]

    def add(self, key: Key, example: Example) -> list[PackedSequence]:
        """Places one document, which fits into a sequence, and returns the sequences that this closed."""
        length, patches = len(example), example.num_patches
        assert 0 < length <= self._sequence_length and patches <= self._patches, (length, patches)
        closed, most, most_patches = [], self._sequence_length - length, self._patches - patches
        fits = (i for i, (_, filled, shown) in enumerate(self._open) if filled <= most and shown <= most_patches)
        place = next(fits, None)
        if place is None:
            if len(self._open) == self._open_sequences:
                closed.append(self._open.pop(self._fullest())[0])
            place = len(self._open)
            self._open.append(([], 0, 0))
        sequence, filled, shown = self._open[place]
        sequence.append((key, example))
        self._open[place] = (sequence, filled + length, shown + patches)
        if filled == most:
            closed.append(self._open.pop(place)[0])
        return closed

    def _fullest(self) -> int:
        # The products compare shares of different wholes exactly.
        shares = [max(filled * self._patches, shown * self._sequence_length) for _, filled, shown in self._open]
        return int(np.argmax(shares))

    def flush(self) -> list[PackedSequence]:
        """Closes and returns every open sequence, the oldest first."""
        sequences, self._open = self.open, []
        return sequences


def used(sequence: PackedSequence) -> int:
    """Counts the tokens in a sequence."""
    return sum(len(example) for _, example in sequence)


def _used_patches(sequence: PackedSequence) -> int:
    return sum(example.num_patches for _, example in sequence)


def make_batch(
    sequences: Sequence[PackedSequence],
    *,
    sequence_length: int,
    pad_token_id: int,
    fields: Fields = TOKEN_FIELDS,
    signals: Signals | None = None,
    vision: VisionReader | None = None,
    where: Callable[[Key], str] = str,
) -> HostBatch:
    """Lays sequences, which may be empty, out as arrays [B, T, ...]; their ends are padding.

    ``segment_ids`` count the documents of a sequence from 1. The values of the other fields are those of the examples.
    Padding is the pad token in ``input_ids`` and 0 elsewhere.

    Args:
      signals: further values, whose fields come on top. They are read document by document, into the batch.
      vision: adds the images and videos, and the positions of the tokens, which the examples know then.
      where: names the file and the line of a document, for messages.

    Raises:
      ValueError: a field has no value for each token, there are no signals for a document, or a picture of it
        cannot be decoded.
    """
    if vision is not None:
        fields = {**fields, "positions": vision.fields["positions"]}
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
    return batch if vision is None else {**batch, **vision.lay_out(sequences, where)}


def _read(signals: Signals, key: Key, example: Example, where: Callable[[Key], str]) -> Mapping[str, np.ndarray]:
    try:
        return signals.signals_of(example)
    except ValueError as err:
        raise ValueError(f"{where(key)}: {err}") from err
