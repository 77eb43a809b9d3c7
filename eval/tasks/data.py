"""Finds and reads the rows of a task; an error names the file and the place of a wrong row."""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from qwen35_jax import gcs
from qwen35_jax.hf.hub import HubFile, find_hub_file
from qwen35_jax.wording import type_of

_ENDINGS = (".jsonl", ".parquet", ".csv")
_SHARD_ENDINGS = (".parquet", ".arrow")
# What ``datasets`` calls the files of a saved split.
_UNNAMED_SPLIT = "data"


@dataclasses.dataclass(frozen=True)
class Row:
    """One object of a data file.

    Attributes:
      fields: its keys and values.
      where: the file with the line (JSONL) or row (Parquet, CSV), from 1, for messages.
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
            raise ValueError(f"{self.where}: {name}={value!r} is {type_of(value)}, expected {expected}.")
        return value

    def own_id(self) -> int | str:
        """Returns the row's ``id``, or its number counted from 0.

        Raises:
          ValueError: ``id`` is neither a string nor a whole number.
        """
        return self.get("id", int, str) if "id" in self.fields else self.number


@dataclasses.dataclass(frozen=True)
class HubFiles:
    """Files of a hub dataset at a pinned revision.

    Attributes:
      pattern: the path of a file, with ``{split}``, and ``{part}`` where the data have parts.
      names: what the hub calls a split, where it has another name there.
    """

    repo: str
    revision: str
    pattern: str
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the rows of a task are.

    Attributes:
      splits: known by name; the first is scored if no other is asked for.
      hub: where they come from without a data directory.
      parts: the subjects, where each has a file of its own on the hub, in the order in which they are read.
      part_field: the field that tells a row's subject; rows that lack it get the name of their part.
    """

    splits: tuple[str, ...]
    hub: HubFiles | None = None
    parts: tuple[str, ...] = ()
    part_field: str = "subject"


def read_split(
    task: str, data: Data, data_dir: str | None, split: str, *, or_any: bool = False
) -> tuple[str, list[Row]]:
    """Returns where the rows of a split were found, and the rows in order.

    With a data directory they are in ``DATA_DIR/TASK``: one file ``SPLIT.jsonl``, ``.parquet`` or ``.csv``; else the
    files that the hub has, where it has them; else such a file or shards ``SPLIT-00000-of-00002.parquet`` (or
    ``data-00000-of-00001.arrow``, where a task has one split), there, in ``data/``, or in one folder for each subject.
    Without a data directory they are the task's files of the hub, downloaded once.

    Args:
      or_any: take another of the task's splits, or the only file there, if that split is missing.

    Raises:
      ValueError: there are no such files, they cannot be chosen or read, or the hub cannot be reached.
    """
    if data_dir is None:
        return _hub_rows(task, data, split)
    place = f"{data_dir.rstrip('/')}/{task}"
    wanted = f"{place}/{split}.jsonl (or .parquet)"
    folder = folder_of_data(data_dir, task)
    if folder is None:
        raise ValueError(f"{place} is not a folder; put the data of {task} at {wanted}.")
    others = [each for each in data.splits if each != split] or [_UNNAMED_SPLIT]
    for name in (split, *(others if or_any else ())):
        files = _files_of_split(folder, data, name)
        if files:
            return place, _rows_of_files(files, data.part_field)
    files = sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS)
    if not or_any or len(files) != 1:
        names = [path.name for path in sorted(folder.iterdir())] or "no data file"
        raise ValueError(f"{place} holds {names}; put the data of {task} at {wanted}.")
    return place, _rows_of_files([(None, files[0])], data.part_field)


def digest_of(rows: Sequence[Row]) -> str:
    """Returns the SHA-256 of rows, the same however they are stored."""
    digest = hashlib.sha256()
    for row in rows:
        text = json.dumps(row.fields, sort_keys=True, ensure_ascii=False, default=str)
        digest.update(text.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()


def _hub_rows(task: str, data: Data, split: str) -> tuple[str, list[Row]]:
    remedy = f"give --data-dir with {task}/{split}.jsonl in it."
    if data.hub is None:
        raise ValueError(f"task {task} has no public data set; {remedy}")
    hub, paths = data.hub, _hub_paths(data, split)
    if not paths:
        raise ValueError(f"task {task} has no split {split!r} on the hub; give --split {' or '.join(data.splits)}.")
    remedy = f"Check the network, or {remedy}"
    files = [(part, find_hub_file(HubFile(hub.repo, hub.revision, path), remedy=remedy)) for part, path in paths]
    return f"{hub.repo}@{hub.revision}", _rows_of_files(files, data.part_field)


def _hub_paths(data: Data, split: str) -> list[tuple[str | None, str]]:
    """Returns the subject and the path of each file that the hub has of a split; none where it has no such split."""
    hub = data.hub
    if hub is None or ("{split}" not in hub.pattern and split not in data.splits):
        return []
    name = hub.names.get(split, split)
    return [(part, hub.pattern.format(split=name, part=part)) for part in data.parts or (None,)]


def _files_of_split(folder: Path, data: Data, split: str) -> list[tuple[str | None, Path]]:
    """Returns the files of a split, each with its subject where every subject has a file."""
    if whole := _whole_file(folder, split):
        return [(None, whole)]
    # A copy of the hub's repository may hold the same rows in other folders too.
    copied = [(part, folder / path) for part, path in _hub_paths(data, split)]
    if copied and all(path.is_file() for _, path in copied):
        return copied
    for place in (folder, folder / "data"):
        if files := _files_in(place, split):
            return [(None, path) for path in files]
    subjects = sorted(path for path in folder.iterdir() if path.is_dir())
    return [(subject.name, path) for subject in subjects for path in _files_in(subject, split)]


def _whole_file(folder: Path, split: str) -> Path | None:
    paths = (folder / f"{split}{ending}" for ending in _ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def _files_in(folder: Path, split: str) -> list[Path]:
    if whole := _whole_file(folder, split):
        return [whole]
    return sorted(path for path in folder.glob(f"{split}-*-of-*") if path.suffix in _SHARD_ENDINGS)


def _rows_of_files(files: Sequence[tuple[str | None, Path]], part_field: str) -> list[Row]:
    rows: list[Row] = []
    for part, path in files:
        for row in read_rows(path):
            fields = row.fields if part is None else {part_field: part} | row.fields
            rows.append(Row(fields, row.where, len(rows)))
    return rows


def folder_of_data(data_dir: str, name: str) -> Path | None:
    """Returns ``DATA_DIR/NAME`` where it is a folder, or the local copy of such a folder of a bucket."""
    gcs.check_scheme(data_dir)
    if gcs.is_address(data_dir):
        address = f"{data_dir.rstrip('/')}/{name}"
        return gcs.local_copy(address) if gcs.list_files(address) else None
    folder = Path(data_dir) / name
    return folder if folder.is_dir() else None


def read_rows(path: Path) -> list[Row]:
    """Returns all rows of a JSONL, Parquet or CSV file (with a header; its values are texts), in order.

    Raises:
      ValueError: the file cannot be read, holds no row, or a line is not a JSON object.
    """
    try:
        readers = {".parquet": _table_rows, ".arrow": _table_rows, ".csv": _csv_rows}
        rows = list(readers.get(path.suffix, _jsonl_rows)(path))
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowInvalid) as err:
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
                raise ValueError(f"{where}: {type_of(fields)}, expected a JSON object.")
            yield Row(fields, where, number)
            number += 1


def _table_rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".arrow":
        with pyarrow.ipc.open_stream(path) as stream:
            table = stream.read_all()
    else:
        table = pyarrow.parquet.read_table(path)
    for number, fields in enumerate(table.to_pylist()):
        yield Row(fields, f"{path}: row {number + 1}", number)


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, fields in enumerate(csv.DictReader(lines, restkey="", strict=True)):
            yield Row(fields, f"{path}: row {number + 1}", number)
