"""In which files the arrays of a checkpoint lie, as the database says that orbax keeps them in (tensorstore's OCDBT).

The database is a tree of nodes. Its manifest names the root; nodes and values are ranges of bytes of files. A listing
cannot show that a file is absent which a bucket confirmed and lost. The tree can.
"""

import logging
import re
from typing import Any

import tensorstore

MANIFEST = "manifest.ocdbt"
"""The file that names the root; without it there is no database."""
_PLACE = re.compile(r"[^:]*:(.*):([^:]*):(\d+):(\d+)")

logger = logging.getLogger(__name__)


def needed_files(folder: str) -> dict[str, int]:
    """Returns the files, besides ``MANIFEST``, that a database needs, and how many bytes each has at least.

    Args:
      folder: address of the database, such as ``gs://bucket/run/checkpoints/3/state``.

    Raises:
      ValueError: a node of the tree cannot be read.
    """
    database = tensorstore.KvStore.open(f"{folder}/").result()
    needed: dict[str, int] = {}
    try:
        versions = tensorstore.ocdbt.dump(database).result()["versions"]
        pending = [versions[-1]["root"]["location"]]
        while pending:
            place = pending.pop()
            _note(needed, place)
            node = tensorstore.ocdbt.dump(database, place).result()
            if node["height"]:
                pending += [entry["location"] for entry in node["entries"]]
                continue
            for entry in node["entries"]:
                if "indirect_value" in entry:
                    _note(needed, entry["indirect_value"])
    except (KeyError, IndexError, TypeError) as err:
        # What a dump looks like is not promised.
        logger.warning("this tensorstore shows its trees in another way (%r): lost files are not looked for", err)
    return needed


def _note(needed: dict[str, int], place: Any) -> None:
    """Notes the range of bytes that a place stands for: ``kind:folder:file:offset:length``."""
    parts = _PLACE.fullmatch(place)
    if parts is None:
        raise TypeError(place)
    name, offset, length = parts[1] + parts[2], int(parts[3]), int(parts[4])
    needed[name] = max(needed.get(name, 0), offset + length)
