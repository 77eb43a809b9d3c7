"""Finds the bytes of each tensor in checkpoint files, and reads and writes them block by block.

A safetensors file is eight bytes (little-endian length of the header), a JSON header, and the tensors' bytes. We read
the header ourselves for two reasons: export overwrites single tensors in place, and a read block by block keeps the
resident memory at the model's size, which a mapping of the whole file does not.

Source: the format's description in the safetensors project.
"""

import json
import logging
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from qwen35_jax.hf.names import Index

logger = logging.getLogger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"BF16": np.dtype(jnp.bfloat16), "F16": np.dtype("float16"), "F32": np.dtype("float32")}
"""What weights are stored as."""
_WHOLE = {"U8": "uint8", "U32": "uint32", "I32": "int32", "I64": "int64"}
TYPES = DTYPES | {name: np.dtype(dtype) for name, dtype in _WHOLE.items()}
"""These, and the whole numbers that other files hold."""
# Other formats of weights, which would be stale beside an export.
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: ``offset`` counts bytes from the start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def read(self, index: Index, dtype: DTypeLike) -> np.ndarray:
        """Reads a part of the tensor, converted to ``dtype`` block by block."""
        starts, stops, steps = zip(
            *(cut.indices(size) for cut, size in zip(index, self.shape, strict=True)), strict=True
        )
        assert set(steps) <= {1}, "parts of arrays are contiguous in each axis"
        out = np.empty([stop - start for start, stop in zip(starts, stops, strict=True)], dtype)
        stored = DTYPES[self.dtype]
        line_bytes = math.prod(self.shape[1:]) * stored.itemsize
        for first, last in _blocks(starts[0], stops[0], line_bytes):
            # A mapping per block: pages of the file that were touched count as ours until it is closed.
            shape = (last - first, *self.shape[1:])
            block = np.memmap(self.file, stored, "r", self.offset + first * line_bytes, shape)
            out[first - starts[0] : last - starts[0]] = block[(slice(None), *index[1:])]
        return out

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields the tensor in the dtype and order of the file, a few megabytes at a time."""
        line_bytes = self.num_bytes // self.shape[0]
        for first, last in _blocks(0, self.shape[0], line_bytes):
            whole = (slice(None),) * (len(self.shape) - 1)
            yield self.read((slice(first, last), *whole), DTYPES[self.dtype])


def _blocks(start: int, stop: int, line_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK_BYTES // max(1, line_bytes))
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def checkpoint_files(folder: Path) -> list[Path]:
    """Lists the safetensors files that a checkpoint consists of.

    A single file goes before an index, as in transformers: an index of other files beside it is left from a checkpoint
    that was in shards before.

    Raises:
      FileNotFoundError: there are no weights, or the index names a shard that is absent.
      ValueError: the index is not valid.
    """
    index = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
    else:
        raise FileNotFoundError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}.")
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{index} names the shard {name}, which is not in the folder; download it again.")
    return [folder / name for name in names]


def read_checkpoint(folder: Path) -> dict[str, Stored]:
    """Finds every tensor of a checkpoint, from the headers alone.

    Raises:
      FileNotFoundError: as ``checkpoint_files``.
      ValueError: a file is damaged, or the index and the files disagree.
    """
    files = checkpoint_files(folder)
    stored = {name: tensor for file in files for name, tensor in read_header(file).items()}
    index = folder / INDEX_FILE
    if _is_left_over(index):
        logger.warning("%s does not describe %s beside it, and is not read; remove it.", index, SINGLE_FILE)
    elif index.is_file():
        for name, shard in _weight_map(index).items():
            found = stored[name].file.name if name in stored else "no file"
            if found != shard:
                raise ValueError(f"{index} places {name} in {shard}, but {found} holds it; download them again.")
    return stored


def _is_left_over(index: Path) -> bool:
    """Returns whether an index lies beside a single file that it does not describe."""
    single = index.with_name(SINGLE_FILE)
    if not (index.is_file() and single.is_file()):
        return False
    try:
        return dict(_weight_map(index)) != dict.fromkeys(read_header(single), SINGLE_FILE)
    except ValueError:
        return True


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ValueError("a shard is not named")
        return weight_map
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as err:
        raise ValueError(f"{index} is not an index of safetensors files ({err}).") from err


def read_header(file: Path) -> dict[str, Stored]:
    """Finds every tensor of one safetensors file.

    Raises:
      ValueError: the file is damaged or cut short, or holds a tensor that is not of a floating-point type.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise ValueError(f"{file} is cut short: its {size} bytes do not hold a safetensors header.")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: (
                    Stored(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]),
                    entry,
                )
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"{file} has no valid safetensors header ({err}).") from err
    for name, (stored, entry) in tensors.items():
        if stored.dtype not in DTYPES:
            raise ValueError(f"{file}: {name} is stored as {stored.dtype}; supported are {', '.join(DTYPES)}.")
        end = 8 + length + entry["data_offsets"][1]
        if end - stored.offset != stored.num_bytes:
            raise ValueError(
                f"{file}: {name} of shape {list(stored.shape)} does not fit its {end - stored.offset} bytes."
            )
        if end > size:
            raise ValueError(f"{file} is cut short: {name} ends at byte {end}, the file at {size}. Copy it again.")
    return {name: stored for name, (stored, _) in tensors.items()}


def header_bytes(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Builds the start of a safetensors file, whose tensors, (name, dtype, shape), follow in this order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + math.prod(shape) * TYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def other_files(folder: Path) -> list[Path]:
    """Lists what belongs to a checkpoint besides its weights: configuration, tokenizer, template, licence.

    An index that does not describe the weights does not belong to it: other programs would read other weights.
    """
    left_over = {INDEX_FILE} if _is_left_over(folder / INDEX_FILE) else set()
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and path.suffix not in _WEIGHT_SUFFIXES
        and path.name not in left_over
    )
