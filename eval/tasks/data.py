"""Finds and reads the rows of a task; an error names the file and the place of a wrong row."""

import ast
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

from eval.tasks.media import image_of, parquet_rows, tsv_rows
from qwen35_jax import gcs
from qwen35_jax.hf.hub import HubFile, find_hub_file
from qwen35_jax.wording import reason_of, type_of

_ENDINGS = (".jsonl", ".parquet", ".csv", ".json", ".tsv")
_SHARD_ENDINGS = (".parquet", ".arrow")
# What ``datasets`` calls the files of a saved split.
_UNNAMED_SPLIT = "data"


@dataclasses.dataclass(frozen=True)
class Row:
    """One object of a data file.

    Attributes:
      fields: its keys and values.
      where: the file with the line (JSONL) or row (others), from 1, for messages.
      number: its place in the file, from 0.
      asked: whether a model will read what the row becomes; else it may lack what a prompt alone needs.
    """

    fields: dict[str, Any]
    where: str
    number: int
    asked: bool = True

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

    def one_of(self, name: str, *values: str) -> str:
        """Returns a field that must be there and be one of these texts; raises ``ValueError`` if it is not."""
        value = self.get(name, str)
        if value not in values:
            raise ValueError(f"{self.where}: {name}={value!r} is none of {', '.join(values)}.")
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
      folder: of the data directory, where it is not called as the task.
      files: what others call files with these rows; of rows with a field ``split`` that names one of ``splits``, those
        of the wanted split count.
      images: the fields with images, which become ``eval.tasks.media.StoredImage``.
    """

    splits: tuple[str, ...]
    hub: HubFiles | None = None
    parts: tuple[str, ...] = ()
    part_field: str = "subject"
    folder: str | None = None
    files: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


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
    name = data.folder or task
    place = f"{data_dir.rstrip('/')}/{name}"
    wanted = " or ".join([f"{place}/{split}.jsonl (or .parquet)", *data.files])
    folder = folder_of_data(data_dir, name)
    if folder is None:
        raise ValueError(f"{place} is not a folder; put the data of {task} at {wanted}.")
    others = [each for each in data.splits if each != split] or [_UNNAMED_SPLIT]
    for name in (split, *(others if or_any else ())):
        files = _files_of_split(folder, data, name)
        if files:
            return place, _rows_of_files(files, data)
    if known := next((folder / name for name in data.files if (folder / name).is_file()), None):
        return place, of_split(_rows_of_files([(None, known)], data), data, split, known)
    files = sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS)
    if not or_any or len(files) != 1:
        names = [path.name for path in sorted(folder.iterdir())] or "no data file"
        raise ValueError(f"{place} holds {names}; put the data of {task} at {wanted}.")
    return place, _rows_of_files([(None, files[0])], data)


def of_split(rows: list[Row], data: Data, split: str, path: Path) -> list[Row]:
    """Returns the rows of a split, and those that name none of the task's; raises ``ValueError`` if there are none."""
    kept = [row for row in rows if row.fields.get("split") not in data.splits or row.fields["split"] == split]
    if not kept:
        raise ValueError(f"{path} holds no rows of the split {split}.")
    return kept


def digest_of(rows: Sequence[Row]) -> str:
    """Returns the SHA-256 of rows, the same however they are stored. Of an image its bytes count."""
    digest = hashlib.sha256()
    for row in rows:
        text = json.dumps(row.fields, sort_keys=True, ensure_ascii=False, default=str)
        digest.update(text.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()


def listed(value: Any) -> Any:
    """Returns the list that a text writes in Python's way; anything else as it is."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
        return found if isinstance(found, list) else value
    return value


def _hub_rows(task: str, data: Data, split: str) -> tuple[str, list[Row]]:
    files = " or ".join([f"{data.folder or task}/{split}.jsonl (or .parquet)", *data.files])
    remedy = f"give --data-dir with {files} in it."
    if data.hub is None:
        raise ValueError(f"task {task} has no public data set; {remedy}")
    hub, paths = data.hub, _hub_paths(data, split)
    if not paths:
        raise ValueError(f"task {task} has no split {split!r} on the hub; give --split {' or '.join(data.splits)}.")
    remedy = f"Check the network, or {remedy}"
    files = [(part, find_hub_file(HubFile(hub.repo, hub.revision, path), remedy=remedy)) for part, path in paths]
    return f"{hub.repo}@{hub.revision}", _rows_of_files(files, data)


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


def _rows_of_files(files: Sequence[tuple[str | None, Path]], data: Data) -> list[Row]:
    rows: list[Row] = []
    for part, path in files:
        for row in read_rows(path, data.images):
            fields = row.fields if part is None else {data.part_field: part} | row.fields
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


def read_rows(path: Path, images: Sequence[str] = ()) -> list[Row]:
    """Returns all rows of a file, in order.

    It is JSONL, Parquet, CSV or TSV (both with a header; their values are texts), or JSON: a list of objects, or an
    object of them by ``id``, of which other values become ``{"id", "value"}``.

    Args:
      images: fields that hold images.

    Raises:
      ValueError: the file cannot be read, holds no row, or one is not an object.
    """
    try:
        readers = {".parquet": _table_rows, ".arrow": _table_rows, ".csv": _csv_rows, ".tsv": _tsv_rows}
        rows = list((readers | {".json": _json_rows}).get(path.suffix, _jsonl_rows)(path, images))
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowInvalid) as err:
        raise ValueError(f"cannot read {path}: {reason_of(err)}.") from err
    if not rows:
        raise ValueError(f"{path} holds no rows.")
    return rows


def _row(fields: dict[str, Any], where: str, number: int, folder: Path, images: Sequence[str]) -> Row:
    for name in images:
        if name in fields:
            fields[name] = image_of(fields[name], folder, where)
    return Row(fields, where, number)


def _jsonl_rows(path: Path, images: Sequence[str]) -> Iterator[Row]:
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
            yield _row(fields, where, number, path.parent, images)
            number += 1


def _json_rows(path: Path, images: Sequence[str]) -> Iterator[Row]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as err:
        raise ValueError(f"{path}: not valid JSON: {err}") from err
    if isinstance(content, dict):
        entries = [
            (f"{path}: {key}", {"id": key, **(value if isinstance(value, dict) else {"value": value})})
            for key, value in content.items()
        ]
    elif isinstance(content, list):
        entries = [(f"{path}: entry {number}", value) for number, value in enumerate(content, start=1)]
    else:
        raise ValueError(f"{path}: {type_of(content)}, expected a JSON list or object.")
    for number, (where, fields) in enumerate(entries):
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: {type_of(fields)}, expected a JSON object.")
        yield _row(fields, where, number, path.parent, images)


def _table_rows(path: Path, images: Sequence[str]) -> Iterator[Row]:
    if path.suffix == ".arrow":
        with pyarrow.ipc.open_stream(path) as stream:
            rows = iter(stream.read_all().to_pylist())
    elif images:
        yield from (Row(fields, f"{path}: row {number + 1}", number)
                    for number, fields in enumerate(parquet_rows(path, images)))  # fmt: skip
        return
    else:
        rows = iter(pyarrow.parquet.read_table(path).to_pylist())
    for number, fields in enumerate(rows):
        yield _row(fields, f"{path}: row {number + 1}", number, path.parent, images)


def _csv_rows(path: Path, images: Sequence[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, fields in enumerate(csv.DictReader(lines, restkey="", strict=True)):
            yield _row(fields, f"{path}: row {number + 1}", number, path.parent, images)


def _tsv_rows(path: Path, images: Sequence[str]) -> Iterator[Row]:
    for number, fields in enumerate(tsv_rows(path, images)):
        yield Row(fields, f"{path}: row {number + 1}", number)
