"""Finds and reads the rows of a task; an error names the file and the place of a wrong row."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from qwen35_jax import gcs
from qwen35_jax.hf.hub import HubFile, find_hub_file


@dataclasses.dataclass(frozen=True)
class Row:
    """One object of a data file.

    Attributes:
      fields: its keys and values.
      where: the file with the line (JSONL) or row (Parquet), from 1, for messages.
      number: its place in the file, from 0.
    """

    fields: dict[str, Any]
    where: str
    number: int

    def get(self, name: str, *kinds: type) -> Any:
        """Returns a field that must be there.

        Raises:
          ValueError: it is missing or of none of the given kinds.
        """
        if name not in self.fields:
            raise ValueError(f"{self.where}: no field {name!r}; the row has {sorted(self.fields)}.")
        value = self.fields[name]
        if type(value) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{self.where}: {name}={value!r} is a {type(value).__name__}, expected {expected}.")
        return value

    def own_id(self) -> int | str:
        """Returns the row's ``id``, or its number counted from 0.

        Raises:
          ValueError: ``id`` is neither a string nor a whole number.
        """
        return self.get("id", int, str) if "id" in self.fields else self.number


def find_file(task: str, splits: tuple[str, ...], hub: HubFile | None, data_dir: str | None) -> Path:
    """Returns the data file of a task.

    In ``DATA_DIR/TASK`` that is the first of ``splits`` as JSONL or Parquet, else the only such file
    there. Without a data directory it is the task's hub file, downloaded once.

    Raises:
      ValueError: there is no such file, it cannot be chosen, or the hub cannot be reached.
    """
    if data_dir is None:
        remedy = f"give --data-dir with {task}/test.jsonl in it."
        if hub is None:
            raise ValueError(f"task {task} has no public data set; {remedy}")
        return find_hub_file(hub, remedy=f"Check the network, or {remedy}")
    place = f"{data_dir.rstrip('/')}/{task}"
    wanted = f"{place}/{splits[0]}.jsonl (or .parquet)"
    folder = folder_of_data(data_dir, task)
    if folder is None:
        raise ValueError(f"{place} is not a folder; put the data of {task} at {wanted}.")
    for split in splits:
        for suffix in (".jsonl", ".parquet"):
            if (folder / f"{split}{suffix}").is_file():
                return folder / f"{split}{suffix}"
    files = sorted(path for path in folder.iterdir() if path.suffix in (".jsonl", ".parquet"))
    if len(files) != 1:
        names = [path.name for path in files] or "no data file"
        raise ValueError(f"{place} holds {names}; put the data of {task} at {wanted}.")
    return files[0]


def folder_of_data(data_dir: str, name: str) -> Path | None:
    """Returns ``DATA_DIR/NAME`` where it is a folder, or the local copy of such a folder of a bucket."""
    gcs.check_scheme(data_dir)
    if gcs.is_address(data_dir):
        address = f"{data_dir.rstrip('/')}/{name}"
        return gcs.local_copy(address) if gcs.list_files(address) else None
    folder = Path(data_dir) / name
    return folder if folder.is_dir() else None


def read_rows(path: Path) -> list[Row]:
    """Returns all rows of a JSONL or Parquet file, in order.

    Raises:
      ValueError: the file cannot be read, holds no row, or a line is not a JSON object.
    """
    try:
        rows = list(_parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path))
    except (OSError, UnicodeDecodeError, pyarrow.ArrowInvalid) as err:
        raise ValueError(f"cannot read {path}: {err}") from err
    if not rows:
        raise ValueError(f"{path} holds no rows.")
    return rows


def _jsonl_rows(path: Path) -> Iterator[Row]:
    number = 0
    with path.open(encoding="utf-8") as lines:
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{line_number}"
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as err:
                raise ValueError(f"{where}: not valid JSON: {err}") from err
            if not isinstance(fields, dict):
                raise ValueError(f"{where}: a {type(fields).__name__}, expected a JSON object.")
            yield Row(fields, where, number)
            number += 1


def _parquet_rows(path: Path) -> Iterator[Row]:
    for number, fields in enumerate(pyarrow.parquet.read_table(path).to_pylist()):
        yield Row(fields, f"{path}: row {number + 1}", number)
