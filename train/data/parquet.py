"""Rows of Parquet files by number, of which a few row groups are in memory at a time."""

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qwen35_jax.storage import read_samples
from train.data.rows import RowError
from train.data.values import parse_json

_SAMPLES = 64
_TAIL_BYTES = 1 << 16


class ParquetFile:
    """The rows of one file. Only the file's footer is held."""

    def __init__(self, path: Path, columns: Sequence[str] | None = None):
        """Reads the footer.

        Args:
          columns: those that rows are made of, where the file has them; None for all of the file.

        Raises:
          OSError: the file cannot be read.
          ValueError: it is no Parquet file.
        """
        self.path = path
        self.num_bytes = path.stat().st_size
        self.checksum = _sampled_checksum(path)
        try:
            metadata = pq.read_metadata(path)
        except pa.ArrowException as err:
            raise ValueError(f"{path} is not a readable Parquet file: {err}") from err
        self.columns = metadata.schema.to_arrow_schema().names
        self._read = [name for name in self.columns if columns is None or name in columns]
        self.not_read = [name for name in self.columns if name not in self._read]
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
                return file.read_row_group(number, columns=self._read)
        except pa.ArrowException as err:
            raise ValueError(f"{self.path} cannot be read at its row group {number + 1}: {err}") from err

    def where(self, index: int) -> str:
        """Names the file and the number of a row."""
        return f"{self.path} row {index + 1}"

    def _uncompressed_bytes(self, group: pq.RowGroupMetaData) -> int:
        chunks = (group.column(number) for number in range(group.num_columns))
        return sum(
            chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in self._read
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
    """Turns one row of a row group into Python objects; columns of JSON are parsed.

    Raises:
      RowError: Python has no value for something in the row, or a column of JSON holds something else.
    """
    try:
        [row] = table.slice(index, 1).to_pylist(maps_as_pydicts="strict")
    except (pa.ArrowException, ValueError, OverflowError, KeyError) as err:
        raise RowError("wrong_type", f"the row holds a value that Python cannot hold: {err}") from err
    return {
        field.name: _with_json(row[field.name], field.type, repr(field.name))
        if _holds_json(field.type)
        else row[field.name]
        for field in table.schema
    }


def _with_json(value: Any, kind: pa.DataType, where: str) -> Any:
    """Parses the JSON inside a value; tables hold it as text."""
    if value is None or not _holds_json(kind):
        return value
    if isinstance(kind, pa.JsonType):
        return parse_json(value, where)
    if isinstance(kind, pa.MapType):
        return {key: _with_json(item, kind.item_type, where) for key, item in value.items()}
    if isinstance(kind, pa.StructType):
        return {name: _with_json(item, kind.field(name).type, where) for name, item in value.items()}
    return [_with_json(item, kind.value_type, where) for item in value]


def _holds_json(kind: pa.DataType) -> bool:
    """Tells whether JSON is anywhere inside a type."""
    if isinstance(kind, pa.JsonType):
        return True
    if isinstance(kind, pa.MapType):
        return _holds_json(kind.item_type)
    if isinstance(kind, pa.StructType):
        return any(_holds_json(field.type) for field in kind.fields)
    # The kinds of lists have no class in common; a dictionary has a `value_type` too, which holds no nested values.
    return hasattr(kind, "value_type") and not pa.types.is_dictionary(kind) and _holds_json(kind.value_type)


def _sampled_checksum(path: Path) -> int:
    """CRC-32 of the size, the footer and evenly spaced samples; of every byte of a file up to 256 KiB."""
    size = path.stat().st_size
    checksum = zlib.crc32(str(size).encode())
    for sample in read_samples(path, _SAMPLES):
        checksum = zlib.crc32(sample, checksum)
    with path.open("rb") as file:
        file.seek(max(size - _TAIL_BYTES, 0))
        return zlib.crc32(file.read(), checksum)
