"""Rows of a JSONL file by number.

A file is held as the byte offset of each row, 8 bytes a row. To find them the file is read once, at about 1 GB/s on one
core. The offsets of a large file are kept in the user's cache (`train.data.kept`) and mapped into memory from there. So
the next start reads nothing, and the offsets need no memory.
"""

import logging
import os
import uuid
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from train.data.kept import kept_file
from train.data.values import parse_json

logger = logging.getLogger(__name__)

_BLOCK = 1 << 22
# Below this size a file is read again in less than a second.
_CACHED_BYTES = 1 << 29
_HEADER = 3
_SPACE = b" \t\r"
_BOM = b"\xef\xbb\xbf"


class JsonlFile:
    """The rows of one file, which are its lines that are not blank. Reading is thread-safe."""

    def __init__(self, path: Path, *, made_from: Path | None = None, unit: str = "line"):
        """Finds the rows.

        Args:
          made_from: the user's file, if the rows are read from a copy of it; ``unit`` is what it calls a row.

        Raises:
          OSError: the file cannot be read.
          ValueError: it is not written in UTF-8.
        """
        self.path, self._name, self._unit = path, made_from or path, unit
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
          RowError: the row is not valid JSON, or Python cannot read it.
        """
        start, end = (int(offset) for offset in self._starts[index : index + 2])
        # The file is opened for each row: threads do not disturb each other, and many files need few descriptors.
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            line = os.pread(descriptor, end - start, start)
        finally:
            os.close(descriptor)
        return parse_json(line.strip(), "the row")

    def where(self, index: int) -> str:
        """Names the file and the line of a row."""
        number = index + 1 + int(np.searchsorted(self._empty, index, side="right"))
        return f"{self._name} {self._unit} {number}"


def _read_or_make_index(path: Path) -> Int64[np.ndarray, " I"]:
    if path.stat().st_size < _CACHED_BYTES:
        return _make_index(path)
    kept = kept_file(path, "jsonl", ".npy")
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
      The CRC-32 of the file; the number of rows; the number of blank lines; where each row starts, and the end of the
      file; for each blank line, how many rows lie before it. A row ends where the next starts, newlines included.
    """
    starts, empty, size, checksum, num_rows, line, is_blank = [], [], 0, 0, 0, 0, True
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            if not size:
                line = _text_start(block, path)
            newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + size
            begins = np.concatenate([[line], newlines + 1])
            filled, is_blank = _filled_lines(block, begins - size, is_blank)
            size += len(block)
            checksum = zlib.crc32(block, checksum)
            starts.append(begins[:-1][filled])
            empty.append(num_rows + np.cumsum(filled)[~filled])
            num_rows, line = num_rows + int(filled.sum()), int(begins[-1])
    last = [size] if is_blank else [line, size]  # a last line without its newline is a row too
    parts = [np.asarray([checksum, num_rows + len(last) - 1, sum(map(len, empty))]), *starts, np.asarray(last), *empty]
    return np.concatenate(parts).astype(np.int64)


def _filled_lines(
    block: bytes, begins: Int64[np.ndarray, " L"], is_blank: bool
) -> tuple[Bool[np.ndarray, " L-1"], bool]:
    """Finds the lines of a block that hold more than white space.

    Args:
      begins: where the lines begin, relative to the block. The first may have begun before it, and was blank until
        then if ``is_blank``. The last goes on in the next block.

    Returns:
      Which of the lines that end in the block are filled, and whether the last line is blank so far.
    """
    ends = np.append(begins[1:] - 1, len(block))
    begins = np.maximum(begins, 0)
    first_bytes = np.frombuffer(block + b" ", np.uint8)[np.minimum(begins, len(block))]
    filled = (begins < ends) & ~np.isin(first_bytes, np.frombuffer(_SPACE, np.uint8))
    # Few lines begin with white space, so these are looked at one by one.
    for line in np.flatnonzero((begins < ends) & ~filled):
        filled[line] = bool(block[begins[line] : ends[line]].strip(_SPACE))
    filled[0] |= not is_blank
    return filled[:-1], not filled[-1]


def _text_start(block: bytes, path: Path) -> int:
    """Returns where the text begins behind a byte order mark.

    Raises:
      ValueError: the mark is that of UTF-16.
    """
    if block.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is written in UTF-16; save it as UTF-8.")
    return len(_BOM) if block.startswith(_BOM) else 0
