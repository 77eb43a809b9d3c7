"""Writes a store: files of documents one after the other, and last the manifest that makes it whole.

Every process writes files of its own. All of them end a file after the same batch, so that a run which was killed goes
on after the last batch whose files are all there. A file says in its metadata where the data stood after it.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from qwen35_jax.distributed import to_host
from qwen35_jax.hf.safetensors import DTYPES, header_bytes
from qwen35_jax.storage import file_digest, make_writable_folder, write_json
from train.batch import Fields
from train.data.masking import Example
from train.signals.header import Header, differences
from train.signals.shard_file import Rows, ShardFile, read_shard, write_shard
from train.signals.store import (
    HEAD,
    HEAD_TENSOR,
    HEADER,
    MANIFEST,
    SHARDS,
    document_key,
    read_header_file,
    rows_of,
    seal,
)

logger = logging.getLogger(__name__)


class Cut(NamedTuple):
    """The files that all processes wrote after the same batch."""

    number: int
    states: list[dict[str, Any]]
    """Where the data stood after it, for each process that writes."""


def begin(folder: Path, header: Header) -> None:
    """Makes the folder of a store, or checks that the one that is there belongs to the same run.

    Raises:
      ValueError: the folder holds something else, or a store of another run.
      OSError: it cannot be written.
    """
    make_writable_folder(folder)
    if not (folder / HEADER).exists():
        if any(not path.name.startswith(".") and not path.name.endswith(".partial") for path in folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no store; name another folder with --teacher.store.")
        write_json(folder / HEADER, header.to_json())
        return
    stored = read_header_file(folder)
    if changed := stored.fields_unlike(header):
        found = differences(stored, header) or [f"the run file now has another {', '.join(changed)}"]
        raise ValueError(
            f"{folder} holds a store of another run: {found[0]}; or name another folder with --teacher.store."
        )


def is_complete(folder: Path) -> bool:
    """Whether there is nothing left to write."""
    return (folder / MANIFEST).exists()


def last_cut(folder: Path) -> Cut | None:
    """Finds after which batch the writing goes on, and removes what was written after it.

    Raises:
      OSError: a file cannot be read or removed.
    """
    found: dict[int, list[ShardFile]] = {}
    for path in sorted(folder.glob(SHARDS)):
        try:
            shard = read_shard(path)
        except ValueError as err:
            logger.warning("%s It is written anew.", err)
            continue
        found.setdefault(int(shard.metadata["cut"]), []).append(shard)
    last = 0
    while (files := found.get(last + 1)) and len(files) == int(files[0].metadata["writers"]):
        last += 1
    whole = {shard.path for number in range(1, last + 1) for shard in found[number]}
    for path in (*folder.glob(SHARDS), *folder.glob("*.partial")):
        if path not in whole:
            path.unlink()
    return Cut(last, [json.loads(shard.metadata["state"]) for shard in found[last]]) if last else None


class Writer:
    """Collects the signals of documents and writes them to files of one process."""

    def __init__(self, folder: Path, fields: Fields, *, number: int, writers: int, after: int = 0):
        """Goes on after a cut.

        Args:
          number: which of the processes that write this is.
          writers: how many there are.
        """
        self._folder, self._fields, self._number, self._writers, self._cut = folder, fields, number, writers, after
        self._documents: list[tuple[bytes, Rows]] = []
        self._known: set[bytes] = set()
        for path in folder.glob(f"signals-*-{number:04d}.safetensors"):
            self._known.update(key.tobytes() for key in read_shard(path).keys)

    def add(self, example: Example, values: Mapping[str, np.ndarray]) -> int:
        """Takes the signal [T, ...] for a document, and returns for how many positions; 0 if it has the document."""
        key = document_key(example)
        if key in self._known:
            return 0
        self._known.add(key)
        rows = rows_of(example, values)
        self._documents.append((key, rows))
        return len(next(iter(rows.values())))

    def cut(self, state: Mapping[str, Any]) -> Path:
        """Writes what was collected since the last cut; ``state`` says where the data stand.

        Raises:
          OSError: the file cannot be written.
        """
        self._cut += 1
        path = self._folder / f"signals-{self._cut:06d}-{self._number:04d}.safetensors"
        metadata = {
            "cut": str(self._cut),
            "writers": str(self._writers),
            "state": json.dumps(state, sort_keys=True),
        }
        write_shard(path, self._documents, fields=self._fields, metadata=metadata)
        self._documents = []
        return path


def write_head(folder: Path, head: Float[Array, "V E"]) -> None:
    """Writes the weight of the teacher's head, unless it is there. All processes call this.

    Raises:
      OSError: it cannot be written.
    """
    path = folder / HEAD
    values = to_host(head)
    if path.exists() or jax.process_index() > 0:
        return
    [dtype] = [name for name, each in DTYPES.items() if each == values.dtype]
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(header_bytes([(HEAD_TENSOR, dtype, values.shape)]))
        for first in range(0, len(values), 4096):
            file.write(values[first : first + 4096].tobytes())
    partial.replace(path)


def finish(folder: Path) -> dict[str, int]:
    """Writes the manifest of a store whose files are all there, and returns its totals.

    Raises:
      OSError: a file cannot be read, or the manifest cannot be written.
    """
    shards = [read_shard(path) for path in sorted(folder.glob(SHARDS))]
    head = folder / HEAD
    totals = {
        "documents": sum(len(shard.keys) for shard in shards),
        "tokens": sum(int(shard.offsets[-1]) for shard in shards),
        "bytes": sum(shard.num_bytes for shard in shards),
    }
    content = {
        "header": file_digest(folder / HEADER),
        "shards": [
            {"file": shard.path.name, "bytes": shard.num_bytes, "index": shard.digest, "documents": len(shard.keys)}
            for shard in shards
        ],
        "head": {"bytes": head.stat().st_size, "sha256": file_digest(head)} if head.exists() else None,
        "totals": totals,
    }
    write_json(folder / MANIFEST, seal(content))
    return totals
