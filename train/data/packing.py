"""Documents into rows of a fixed length, rows into batches."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from train.data.masking import Example

Key = tuple[int, int]
"""Which document an example is: its position in the order of the run, and its piece if a text was cut."""

Row = list[tuple[Key, Example]]
Batch = dict[str, Int32[np.ndarray, "R T"] | Bool[np.ndarray, "R T"]]


class Packer:
    """First fit with a bounded number of open rows.

    A document goes into the oldest open row that has room for it. If none has and no more may be opened, the fullest
    row is closed. Which row a document goes to depends on the documents before it alone.

    Waste is bounded: of two rows open side by side at most one is half empty, since otherwise the later one's documents
    had gone into the earlier. So with two open rows or more, every row closed is more than half full, and lacks less
    than the document that closed it is long; only `flush` may close one row a good deal emptier.
    """

    def __init__(self, row_length: int, open_rows: int):
        self._row_length, self._open_rows = row_length, open_rows
        self._open: list[tuple[Row, int]] = []

    @property
    def open(self) -> list[Row]:
        """The unfinished rows, the oldest first."""
        return [row for row, _ in self._open]

    def restore(self, rows: Sequence[Row]) -> None:
        """Takes unfinished rows in place of its own."""
        self._open = [(list(row), used(row)) for row in rows]

    def add(self, key: Key, example: Example) -> list[Row]:
        """Places one document of at most ``row_length`` tokens and returns the rows that this closed."""
        length = len(example)
        assert 0 < length <= self._row_length, (length, self._row_length)
        closed = []
        place = next((i for i, (_, filled) in enumerate(self._open) if filled + length <= self._row_length), None)
        if place is None:
            if len(self._open) == self._open_rows:
                fullest = int(np.argmax([filled for _, filled in self._open]))
                closed.append(self._open.pop(fullest)[0])
            place = len(self._open)
            self._open.append(([], 0))
        row, filled = self._open[place]
        row.append((key, example))
        self._open[place] = (row, filled + length)
        if filled + length == self._row_length:
            closed.append(self._open.pop(place)[0])
        return closed

    def flush(self) -> list[Row]:
        """Closes and returns every open row, the oldest first."""
        rows, self._open = self.open, []
        return rows


def used(row: Row) -> int:
    """Counts the tokens in a row."""
    return sum(len(example) for _, example in row)


def make_batch(rows: Sequence[Row], *, row_length: int, pad_token_id: int) -> Batch:
    """Lays rows, which may be empty, out as arrays ``[R, row_length]``, their ends as padding.

    Returns:
      ``input_ids`` and ``segment_ids`` (0 padding; 1, 2, ... the documents of a row), int32, and ``trained``, bool.
    """
    shape = (len(rows), row_length)
    input_ids = np.full(shape, pad_token_id, np.int32)
    segment_ids = np.zeros(shape, np.int32)
    trained = np.zeros(shape, bool)
    for r, row in enumerate(rows):
        start = 0
        for segment, (_, example) in enumerate(row, start=1):
            where = np.s_[r, start : start + len(example)]
            input_ids[where], segment_ids[where], trained[where] = example.input_ids, segment, example.trained
            start += len(example)
    return {"input_ids": input_ids, "segment_ids": segment_ids, "trained": trained}
