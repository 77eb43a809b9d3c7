"""Rows of training data by number, over several JSONL and Parquet files.

Compressed files and arrays of JSON are made JSONL first (`train.data.unpack`). Memory does not grow with the length of
the rows: a JSONL file is held as offsets, and a bounded number of row groups of Parquet files is in memory. Reading is
thread-safe.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qwen35_jax.gcs import folder_of
from qwen35_jax.hf.hub import ENDINGS
from train.data.forms import may_hold
from train.data.jsonl import JsonlFile
from train.data.parquet import GroupCache, ParquetFile, row_of
from train.data.unpack import rows_of

WINDOW_BYTES = 1 << 27
"""How many bytes of Parquet rows are shuffled among each other; twice as many may be in memory."""


class RowSource:
    """The rows of several files, one after the other.

    They come in groups. A row group of a Parquet file is read as a whole. A JSONL file is one group; its rows can be
    read one by one, so it counts no bytes.
    """

    def __init__(self, paths: Sequence[Path], columns: Sequence[str] | None = None):
        """Opens and indexes the files.

        Args:
          columns: what rows of Parquet files are made of; None for every column.

        Raises:
          ValueError: a file cannot be read, has an unknown ending, or holds no row.
        """
        self._files = [_open(path, columns) for path in paths]
        self._folders = [folder_of(path) for path in paths]
        self._first = np.cumsum([0, *map(len, self._files)])
        # Room for two windows, the old one and the next one; each may be larger than it should be by one row group.
        self._cache = GroupCache(2 * (WINDOW_BYTES + max(self.groups[1])))
        self.num_bytes = sum(file.num_bytes for file in self._files)

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Any:
        """Reads one row.

        Raises:
          RowError: the row is not valid JSON, or Python cannot hold it.
        """
        number, row = self._locate(index)
        file = self._files[number]
        if isinstance(file, JsonlFile):
            return file[row]
        group, row = file.locate(row)
        table = self._cache.get((number, group), partial(file.read_group, group), file.group_bytes[group])
        return row_of(table, row)

    def folder(self, index: int) -> Path | str:
        """Returns the folder of the file that a row is from, or its address in a bucket."""
        return self._folders[self._locate(index)[0]]

    def where(self, index: int) -> str:
        """Names the file and the line of a row, for messages."""
        number, row = self._locate(index)
        return self._files[number].where(row)

    @property
    def groups(self) -> tuple[list[int], list[int]]:
        """The rows and the bytes of each group, in order."""
        rows, sizes = [], []
        for file in self._files:
            rows += [len(file)] if isinstance(file, JsonlFile) else file.group_rows
            sizes += [0] if isinstance(file, JsonlFile) else file.group_bytes
        return rows, sizes

    @property
    def columns_not_read(self) -> Counter[str]:
        """The columns of Parquet files that no row has, and how many rows would have them."""
        counts: Counter[str] = Counter()
        for file in self._files:
            if isinstance(file, ParquetFile):
                counts.update({name: len(file) for name in file.not_read})
        return counts

    @property
    def fingerprint(self) -> str:
        """Changes with the content and the order of the files; not with their names.

        Of a Parquet file it takes the size, the footer and samples.
        """
        return f"{zlib.crc32(repr([(len(file), file.checksum) for file in self._files]).encode()):08x}"

    def _locate(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        return number, index - int(self._first[number])


def _open(path: Path, columns: Sequence[str] | None) -> JsonlFile | ParquetFile:
    if not path.name.endswith(ENDINGS):
        raise ValueError(f"{path} ends in none of {', '.join(ENDINGS)}; convert it or rename it.")
    try:
        file = _open_parquet(path, columns) if path.suffix == ".parquet" else _open_jsonl(path)
    except OSError as err:
        if err.filename and str(err.filename) != str(path):  # of the copy that is made of a compressed file
            raise
        raise ValueError(f"{path} cannot be read: {err.strerror or err}") from err
    if len(file) == 0:
        raise ValueError(f"{path} is empty; each row must hold a conversation or a text.")
    return file


def _open_jsonl(path: Path) -> JsonlFile:
    rows = rows_of(path)
    return JsonlFile(rows.path, made_from=path, unit=rows.unit)


def _open_parquet(path: Path, columns: Sequence[str] | None) -> ParquetFile:
    file = ParquetFile(path, columns)
    if columns is not None and not may_hold(file.columns):
        raise ValueError(
            f"{path} is of no known form (docs/data.md shows them); its columns: {', '.join(file.columns)}. A function "
            "data.convert in the run file reads any other form."
        )
    return file
