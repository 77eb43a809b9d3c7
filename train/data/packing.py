"""Documents into rows of a fixed length, rows into batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32

from train.data.masking import Example

Key = tuple[int, int]
"""Which document an example is: its position in the order of the run, and its piece if a text was cut."""

Row = list[tuple[Key, Example]]
Batch = dict[str, Int32[np.ndarray, "R T"] | Bool[np.ndarray, "R T"]]


@dataclass
class Packer:
    """First fit with a bounded number of open rows.

    A document goes into the oldest open row that has room for it. If none has and no more may be opened, the fullest
    row is closed. Which row a document goes to depends on the documents before it alone.
    """

    row_length: int
    open_rows: int

    def __post_init__(self) -> None:
        self.open: list[Row] = []

    def add(self, key: Key, example: Example) -> list[Row]:
        """Places one document of at most ``row_length`` tokens and returns the rows that this closed."""
        assert 0 < len(example) <= self.row_length, (len(example), self.row_length)
        closed = []
        row = next((row for row in self.open if used(row) + len(example) <= self.row_length), None)
        if row is None:
            if len(self.open) == self.open_rows:
                closed.append(self.open.pop(int(np.argmax([used(row) for row in self.open]))))
            row = []
            self.open.append(row)
        row.append((key, example))
        if used(row) == self.row_length:
            self.open.remove(row)
            closed.append(row)
        return closed

    def flush(self) -> list[Row]:
        """Closes and returns every open row, the oldest first."""
        rows, self.open = self.open, []
        return rows


def used(row: Row) -> int:
    """Counts the tokens in a row."""
    return sum(len(example) for _, example in row)


def make_batch(rows: Sequence[Row], *, num_rows: int, row_length: int, pad_token_id: int) -> Batch:
    """Lays rows out as arrays ``[num_rows, row_length]``, missing rows and row ends as padding.

    Returns:
      ``input_ids`` and ``segment_ids`` (0 padding; 1, 2, ... the documents of a row), int32, and ``trained``, bool.
    """
    shape = (num_rows, row_length)
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
