"""Rows of training data by number: JSONL and Parquet files, local or from the hub.

A JSONL file is held as the byte offsets of its lines, a Parquet file as Arrow columns; a row becomes Python objects
when it is asked for. Reading is thread-safe.
"""

import glob
import json
import os
import re
import zlib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from train.data.rows import RowError

ENDINGS = (".jsonl", ".parquet")
_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
_KEYS = ("messages", "tools", "text")
_BLOCK = 1 << 24


class JsonlFile:
    """The non-empty lines of one file."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("rb")
        newlines, size, checksum = [], 0, 0
        while block := self._file.read(_BLOCK):
            newlines.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + size)
            size += len(block)
            checksum = zlib.crc32(block, checksum)
        ends = np.concatenate([*newlines, [size]]).astype(np.int64)
        starts = np.concatenate([[0], ends[:-1] + 1])
        filled = np.flatnonzero(ends > starts)
        self._lines, self._starts, self._ends = filled + 1, starts[filled], ends[filled]
        self.checksum = checksum

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Any:
        start = int(self._starts[index])
        # pread moves no shared file position, so that threads do not disturb each other.
        line = os.pread(self._file.fileno(), int(self._ends[index]) - start, start)
        try:
            return json.loads(line)
        except ValueError as err:
            raise RowError("invalid_json", f"not valid JSON: {err}") from err

    def where(self, index: int) -> str:
        return f"{self._path} line {self._lines[index]}"


class ParquetFile:
    """The rows of one file; keys of nested objects whose value is null are left out.

    Arrow gives every object of a column the same keys and fills the absent ones with null.
    """

    def __init__(self, path: Path):
        self._path = path
        with path.open("rb") as file:
            self.checksum = 0
            while block := file.read(_BLOCK):
                self.checksum = zlib.crc32(block, self.checksum)
        try:
            columns = [name for name in pq.read_schema(path).names if name in _KEYS]
            self._table = pq.read_table(path, columns=columns, memory_map=True)
        except pa.ArrowException as err:
            raise ValueError(f"{path} is not a readable Parquet file: {err}") from err
        if not {"messages", "text"} & set(columns):
            names = ", ".join(pq.read_schema(path).names)
            raise ValueError(f"{path} has neither a column 'messages' nor 'text'; its columns: {names}.")

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> Any:
        return _without_nulls(self._table.slice(index, 1).to_pylist(maps_as_pydicts="strict")[0])

    def where(self, index: int) -> str:
        return f"{self._path} row {index + 1}"


class RowSource:
    """The rows of several files, one after the other."""

    def __init__(self, paths: Sequence[Path]):
        """Opens and indexes the files.

        Raises:
          ValueError: a file cannot be read, has an unknown ending, or holds no row.
        """
        self._files = [_open(path) for path in paths]
        self._first = np.cumsum([0, *map(len, self._files)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Any:
        """Reads one row.

        Raises:
          RowError: the row is not valid JSON.
        """
        file, row = self._locate(index)
        return file[row]

    def where(self, index: int) -> str:
        """Names the file and the line of a row, for messages."""
        file, row = self._locate(index)
        return file.where(row)

    @property
    def fingerprint(self) -> str:
        """Changes with the content and the order of the files; not with their names."""
        return "-".join(f"{file.checksum:08x}" for file in self._files)

    def _locate(self, index: int) -> tuple[JsonlFile | ParquetFile, int]:
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._files[number], index - int(self._first[number])


def find_files(path: str, *, hub_files: str = "*train*") -> list[Path]:
    """Turns a file name, a glob or a hub dataset id into the files to read, sorted by name.

    A hub dataset's files are downloaded into the hub's cache; what is there already needs no network.

    Args:
      path: ``file``, ``glob`` or ``org/name[@revision]``. What exists on disk goes before the hub.
      hub_files: pattern for a hub file's path without the ending.

    Raises:
      ValueError: there is no such file, or the hub does not give it.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return [local]
    if local.is_dir():
        raise ValueError(f"data.path={path!r} is a folder; name its files with a glob such as '{local}/*.jsonl'.")
    if glob.has_magic(path):
        files = sorted(Path(name) for name in glob.glob(str(local), recursive=True) if Path(name).is_file())
        if not files:
            raise ValueError(f"data.path={path!r} matches no file.")
        return files
    hub_id = _HUB_ID.fullmatch(path)
    if hub_id is None or path.endswith(ENDINGS):
        raise ValueError(
            f"data.path={path!r} does not exist; give a JSONL or Parquet file, a glob, or a hub dataset id (org/name)."
        )
    return _download(path, hub_id["name"], hub_id["revision"], hub_files)


def _download(path: str, name: str, revision: str | None, hub_files: str) -> list[Path]:
    patterns = [hub_files + ending for ending in ENDINGS]
    try:
        folder = Path(
            huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as err:
        reason = str(err).strip().splitlines()[0]
        raise ValueError(
            f"data.path={path!r} is no local file, and as a dataset on the hub it cannot be read: {reason} "
            "Check the name and the network, or download the file and give its path."
        ) from err
    # The cached snapshot may also hold files of an earlier download with another pattern.
    found = (file for file in folder.rglob("*") if file.is_file())
    files = sorted(file for file in found if any(fnmatch(file.relative_to(folder).as_posix(), p) for p in patterns))
    if not files:
        raise ValueError(
            f"the hub dataset {name!r} has no .jsonl or .parquet file that matches data.hub_files={hub_files!r}; "
            "look at its files on the hub and set data.hub_files."
        )
    return files


def _open(path: Path) -> JsonlFile | ParquetFile:
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} ends neither in .jsonl nor in .parquet; convert it or rename it.")
    try:
        file = JsonlFile(path) if path.suffix == ".jsonl" else ParquetFile(path)
    except OSError as err:
        raise ValueError(f"{path} cannot be read: {err.strerror or err}") from err
    if len(file) == 0:
        raise ValueError(f"{path} is empty; it must hold one conversation or text a row.")
    return file


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
