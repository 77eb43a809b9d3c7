"""Rows of Parquet files by number, of which a few row groups are in memory at a time."""

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qwen35_jax.storage import read_samples

_KEYS = ("messages", "tools", "text")
_SAMPLES = 64
_TAIL_BYTES = 1 << 16


class ParquetFile:
    """The rows of one file; keys of nested objects whose value is null are left out.

    Arrow gives every object of a column the same keys and fills the absent ones with null. Only the file's footer is
    held.
    """

    def __init__(self, path: Path):
        """Reads the footer.

        Raises:
          OSError: the file cannot be read.
          ValueError: it is no Parquet file, or has neither of the columns that hold the data.
        """
        self.path = path
        self.num_bytes = path.stat().st_size
        self.checksum = _sampled_checksum(path)
        try:
            metadata = pq.read_metadata(path)
        except pa.ArrowException as err:
            raise ValueError(f"{path} is not a readable Parquet file: {err}") from err
        names = metadata.schema.to_arrow_schema().names
        self._columns = [name for name in names if name in _KEYS]
        if not {"messages", "text"} & set(self._columns):
            raise ValueError(f"{path} has neither a column 'messages' nor 'text'; its columns: {', '.join(names)}.")
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self.group_rows = [group.num_rows for group in groups]
        self.group_bytes = [self._uncompressed_bytes(group) for group in groups]
        self._group_ends = np.cumsum(self.group_rows)

    def __len__(self) -> int:
        return sum(self.group_rows)

    def locate(self, index: int) -> tuple[int, int]:
        """Returns the row group that holds a row, and the row's number in it."""
        group = int(np.searchsorted(self._group_ends, index, side="right"))
        return group, index - int(self._group_ends[group]) + self.group_rows[group]

    def read_group(self, number: int) -> pa.Table:
        """Reads the columns of one row group.

        Raises:
          ValueError: the file is damaged there.
        """
        try:
            with pq.ParquetFile(self.path) as file:
                return file.read_row_group(number, columns=self._columns)
        except pa.ArrowException as err:
            raise ValueError(f"{self.path} cannot be read at its row group {number + 1}: {err}") from err

    def where(self, index: int) -> str:
        """Names the file and the number of a row."""
        return f"{self.path} row {index + 1}"

    def _uncompressed_bytes(self, group: pq.RowGroupMetaData) -> int:
        chunks = (group.column(number) for number in range(group.num_columns))
        return sum(
            chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in self._columns
        )


class GroupCache:
    """The row groups that were used last, within a number of bytes (uncompressed, by the files' footers)."""

    def __init__(self, max_bytes: int):
        self._max_bytes, self._bytes = max_bytes, 0
        self._groups: OrderedDict[tuple[int, int], tuple[pa.Table, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int], read: Callable[[], pa.Table], num_bytes: int) -> pa.Table:
        """Returns a row group, read if it is not here; the one asked for last stays whatever its size."""
        # Held while reading too: threads that work ahead side by side want the same groups.
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key][0]
            while self._groups and self._bytes + num_bytes > self._max_bytes:
                _, (_, freed) = self._groups.popitem(last=False)
                self._bytes -= freed
            table = read()
            self._groups[key] = (table, num_bytes)
            self._bytes += num_bytes
            return table


def row_of(table: pa.Table, index: int) -> dict[str, Any]:
    """Turns one row of a row group into Python objects."""
    return _without_nulls(table.slice(index, 1).to_pylist(maps_as_pydicts="strict")[0])


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _sampled_checksum(path: Path) -> int:
    """CRC-32 of the size, the footer and evenly spaced samples; of every byte of a file up to 256 KiB."""
    size = path.stat().st_size
    checksum = zlib.crc32(str(size).encode())
    for sample in read_samples(path, _SAMPLES):
        checksum = zlib.crc32(sample, checksum)
    with path.open("rb") as file:
        file.seek(max(size - _TAIL_BYTES, 0))
        return zlib.crc32(file.read(), checksum)
