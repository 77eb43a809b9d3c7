"""One file of a store: the signals of some documents, in the format of safetensors.

First comes the index: the header of the file, then ``offsets`` [D + 1], ``checksums`` [D] and ``keys`` [D, 16]. The
payload follows: the arrays of the signal [R, ...], document after document. Document ``d`` has the rows ``offsets[d]``
to ``offsets[d + 1]``, one for each position that predicts a trained token. Its checksum is the CRC-32 of the bytes of
its rows, array after array.

Letters: D documents of the file, R rows of all of them.
"""

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

from qwen35_jax.hf.safetensors import TYPES, header_bytes
from train.batch import Fields

KEY_BYTES = 16
_NAMES = {dtype: name for name, dtype in TYPES.items()}
_INDEX = ("offsets", "checksums", "keys")
_MOST_HEADER_BYTES = 100_000_000

Rows = Mapping[str, np.ndarray]
"""The arrays of the signal at the positions of one document that predict a trained token."""


class _Place(NamedTuple):
    """Where an array lies in the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


class ShardFile(NamedTuple):
    """What the index of a file says; the payload is read when it is asked for."""

    path: Path
    metadata: Mapping[str, str]
    offsets: Int64[np.ndarray, " D+1"]
    checksums: UInt32[np.ndarray, " D"]
    keys: UInt8[np.ndarray, "D 16"]
    places: Mapping[str, _Place]
    num_bytes: int
    """What the file's size must be."""
    digest: str
    """SHA-256 of the index."""

    def read(self, document: int) -> dict[str, np.ndarray]:
        """Reads the rows of a document.

        Raises:
          ValueError: their checksum is not the one of the index.
          OSError: the file cannot be read.
        """
        first, last = int(self.offsets[document]), int(self.offsets[document + 1])
        rows = {name: self._rows(place, first, last) for name, place in self.places.items()}
        if checksum(rows) != int(self.checksums[document]):
            raise ValueError(f"{self.path}: the signal of its document {document} is damaged: its bytes have changed")
        return rows

    def _rows(self, place: _Place, first: int, last: int) -> np.ndarray:
        shape = (last - first, *place.shape[1:])
        if first == last:
            return np.empty(shape, place.dtype)
        # A mapping for each slice: pages of the file that were touched count as ours until it is closed.
        mapped = np.memmap(self.path, place.dtype, "r", place.start + first * place.row_bytes, shape)
        return np.array(mapped)


def write_shard(
    path: Path, documents: Sequence[tuple[bytes, Rows]], *, fields: Fields, metadata: Mapping[str, str]
) -> None:
    """Writes a file beside its place, and renames it when it is whole and on the disk.

    Args:
      documents: the key and the rows of each.
      fields: the arrays of the signal, in their order.
    """
    ordered = [{name: rows[name] for name in fields} for _, rows in documents]
    lengths = [len(next(iter(rows.values()))) for rows in ordered]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    arrays = {
        "offsets": offsets,
        "checksums": np.asarray([checksum(rows) for rows in ordered], np.uint32),
        "keys": np.frombuffer(b"".join(key for key, _ in documents), np.uint8).reshape(-1, KEY_BYTES),
    }
    layout = [(name, _NAMES[array.dtype], array.shape) for name, array in arrays.items()]
    total = int(offsets[-1])
    layout += [(name, _NAMES[np.dtype(field.dtype)], (total, *field.shape(1, 1)[2:])) for name, field in fields.items()]
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(header_bytes(layout, metadata))
        for array in arrays.values():
            file.write(array.tobytes())
        for name in fields:
            for rows in ordered:
                file.write(rows[name].tobytes())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_shard(path: Path) -> ShardFile:
    """Reads the index of a file, and checks that the file is as long as the index says.

    Raises:
      ValueError: it is cut short or is not such a file.
      OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(size, _MOST_HEADER_BYTES):
            raise ValueError(f"{path} is cut short or damaged: it has no safetensors header.")
        text = file.read(length)
        metadata, places, end = _parse(path, text)
        if end != size:
            raise ValueError(f"{path} has {size} bytes instead of {end}: it is cut short or damaged.")
        index_bytes = sum(math.prod(places[name].shape) * places[name].dtype.itemsize for name in _INDEX)
        content = file.read(index_bytes)
    digest = hashlib.sha256(prefix + text + content).hexdigest()
    start = 8 + length
    offsets, checksums, keys = (_part(content, places.pop(name), start) for name in _INDEX)
    return ShardFile(path, metadata, offsets, checksums, keys, places, size, digest)


def checksum(rows: Rows) -> int:
    """Returns the CRC-32 of the bytes of the rows, array after array."""
    value = 0
    for array in rows.values():
        value = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data, value)
    return value


def _part(content: bytes, place: _Place, start: int) -> np.ndarray:
    count = math.prod(place.shape)
    return np.frombuffer(content, place.dtype, count, place.start - start).reshape(place.shape)


def _parse(path: Path, text: bytes) -> tuple[dict[str, str], dict[str, _Place], int]:
    """Returns the metadata, the place of each array, and where the last one ends."""
    try:
        header = json.loads(text)
        metadata = dict(header.pop("__metadata__"))
        places = dict(_places(header, 8 + len(text)))
        if tuple(places)[: len(_INDEX)] != _INDEX:
            raise ValueError(f"it holds {', '.join(places)}")
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"{path} is no file of a store, or is damaged ({err}).") from err
    last = list(places.values())[-1]
    return metadata, places, last.start + math.prod(last.shape) * last.dtype.itemsize


def _places(header: Mapping[str, Any], start: int) -> Iterator[tuple[str, _Place]]:
    for name, entry in header.items():
        yield name, _Place(TYPES[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0])
