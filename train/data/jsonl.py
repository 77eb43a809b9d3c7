"""Rows of a JSONL file by number.

A file is held as the byte offset of each row, 8 bytes a row. To find them the file is read once, at about 1 GB/s on one
core. The offsets of a large file are kept in the user's cache (``$XDG_CACHE_HOME/qwen35-jax``, by default
``~/.cache``) and mapped into memory from there. So the next start reads nothing, and the offsets need no memory.
"""

import hashlib
import json
import logging
import os
import uuid
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from qwen35_jax.storage import user_cache
from train.data.rows import RowError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 22
# Below this size a file is read again in less than a second.
_CACHED_BYTES = 1 << 29
_HEADER = 3


class JsonlFile:
    """The rows of one file, which are its lines that are not empty. Reading is thread-safe."""

    def __init__(self, path: Path):
        """Finds the rows.

        Raises:
          OSError: the file cannot be read.
        """
        self.path = path
        self.num_bytes = path.stat().st_size
        index = _read_or_make_index(path)
        self.checksum, num_rows, num_empty = (int(value) for value in index[:_HEADER])
        self._starts = index[_HEADER : _HEADER + num_rows + 1]
        self._empty = index[_HEADER + num_rows + 1 :]
        assert len(self._empty) == num_empty

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Any:
        """Reads and parses one row.

        Raises:
          RowError: the row is not valid JSON.
        """
        start, end = (int(offset) for offset in self._starts[index : index + 2])
        # The file is opened for each row: threads do not disturb each other, and many files need few descriptors.
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            line = os.pread(descriptor, end - start, start)
        finally:
            os.close(descriptor)
        try:
            return json.loads(line.rstrip(b"\n"))
        except ValueError as err:
            raise RowError("invalid_json", f"not valid JSON: {err}") from err

    def where(self, index: int) -> str:
        """Names the file and the line of a row."""
        return f"{self.path} line {index + 1 + int(np.searchsorted(self._empty, index, side='right'))}"


def _read_or_make_index(path: Path) -> Int64[np.ndarray, " I"]:
    if path.stat().st_size < _CACHED_BYTES:
        return _make_index(path)
    kept = _cache_file(path)
    try:
        return np.load(kept, mmap_mode="r")
    except (OSError, ValueError):  # absent, or cut off by a full disk
        logger.info("indexing %s (%.1f GB)", path, path.stat().st_size / 1e9)
    index = _make_index(path)
    partial = kept.with_name(f"{uuid.uuid4().hex}.npy")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(partial, index)
        partial.replace(kept)
        return np.load(kept, mmap_mode="r")
    except OSError as err:
        logger.warning("the index of %s cannot be kept in %s (%s): every start will read it", path, kept.parent, err)
        return index


def _make_index(path: Path) -> Int64[np.ndarray, " I"]:
    """Reads a file once.

    Returns:
      The CRC-32 of the file; the number of rows; the number of empty lines; where each row starts, and the end of the
      file; for each empty line, how many rows lie before it. A row ends where the next starts, newlines included.
    """
    starts, empty, size, checksum, num_rows, line = [], [], 0, 0, 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + size
            size += len(block)
            checksum = zlib.crc32(block, checksum)
            begins = np.concatenate([[line], newlines + 1])
            filled = newlines > begins[:-1]
            starts.append(begins[:-1][filled])
            empty.append(num_rows + np.cumsum(filled)[~filled])
            num_rows, line = num_rows + int(filled.sum()), int(begins[-1])
    last = [line, size] if line < size else [size]  # a last line without its newline is a row too
    parts = [np.asarray([checksum, num_rows + len(last) - 1, sum(map(len, empty))]), *starts, np.asarray(last), *empty]
    return np.concatenate(parts).astype(np.int64)


def _cache_file(path: Path) -> Path:
    """Returns where the index of a file is kept. A file with another place, size or time of change is another file."""
    resolved = path.resolve()
    stat = resolved.stat()
    name = hashlib.sha256(f"{resolved}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    return user_cache("jsonl") / f"{name}.npy"
