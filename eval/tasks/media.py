"""Images and videos of documents: where data files keep them, and how they stand in messages.

An image stays in its file until it is asked for: RefCOCO's are gigabytes. Data files keep images as

- a struct ``{"bytes", "path"}`` or bytes (Parquet, as the hub's data sets have them);
- a path beside the file (JSONL, JSON, CSV; also in such a struct);
- base64 text, or a list of such texts, or the ``index`` of the row that has the image (VLMEvalKit's TSV).
"""

import ast
import base64
import binascii
import csv
import functools
import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

Part = Mapping[str, Any]
"""A part of a message's content: ``{"type": "image" | "video" | "text", ...}``."""

# VLMEvalKit takes a shorter text in the column for the index of another row.
_LONGEST_INDEX = 64


class StoredImage:
    """An image in a file.

    Args:
      where: its file, and its row if it stands inside, for messages.
      read: returns its bytes.
      digest: their SHA-256, where it is known; else it is computed once.

    Attributes:
      path: of an image that is a file of its own.
    """

    def __init__(self, where: str, read: Callable[[], bytes], digest: str | None = None, path: Path | None = None):
        self.where, self.read, self.path = where, read, path
        self._digest = digest

    @property
    def is_missing(self) -> bool:
        """Whether it should be a file, and there is none."""
        return self.path is not None and not self.path.is_file()

    @property
    def digest(self) -> str:
        """SHA-256 of its bytes; ``missing`` where there is no file."""
        if self._digest is None:
            self._digest = "missing" if self.is_missing else hashlib.sha256(self.read()).hexdigest()
        return self._digest

    def __str__(self) -> str:
        return f"image {self.digest}"


def image_of(value: Any, folder: Path, where: str) -> StoredImage | list[StoredImage] | None:
    """Returns the image, or the images, that a field holds; None where it holds none.

    Args:
      value: bytes, a struct of bytes and path, a path, or a list of these.
      folder: where relative paths begin.

    Raises:
      ValueError: the value is of another kind.
    """
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None or value == "":
        return None
    if isinstance(value, list):
        found = [image_of(each, folder, where) for each in value]
        return [each for each in found if isinstance(each, StoredImage)]
    if isinstance(value, bytes):
        return StoredImage(where, lambda: value, hashlib.sha256(value).hexdigest())
    if isinstance(value, str):
        path = folder / value
        return StoredImage(str(path), path.read_bytes, path=path)
    raise ValueError(f"{where}: an image field holds {type(value).__name__}, expected bytes or a path.")


def images_of(fields: Mapping[str, Any], names: Sequence[str]) -> list[StoredImage]:
    """Returns the images that stand in these fields of a row, in this order."""
    found = []
    for name in names:
        value = fields.get(name)
        found += value if isinstance(value, list) else [value]
    return [each for each in found if isinstance(each, StoredImage)]


def parquet_rows(path: Path, images: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the fields of each row of a Parquet file; images are left in it."""
    file = pyarrow.parquet.ParquetFile(path)
    number = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        names = [name for name in images if name in table.column_names]
        pictures = {name: table.column(name) for name in names}
        for place, fields in enumerate(table.drop_columns(names).to_pylist()):
            number += 1
            for name in names:
                found = image_of(pictures[name][place].as_py(), path.parent, f"{path}: row {number}")
                if isinstance(found, StoredImage) and found.path is None:
                    read = functools.partial(_from_parquet, path, group, name, place)
                    found = StoredImage(found.where, read, found.digest)
                fields[name] = found
            yield fields


def _from_parquet(path: Path, group: int, name: str, place: int) -> bytes:
    value = _column(path, group, name)[place].as_py()
    return value["bytes"] if isinstance(value, Mapping) else value


@functools.lru_cache(maxsize=2)
def _column(path: Path, group: int, name: str) -> Any:
    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=[name]).column(name)


def tsv_rows(path: Path, images: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the fields of each row of a TSV file with a header, as texts; images are left in it.

    Raises:
      ValueError: a row has another number of fields than the header, or a picture is not base64.
    """
    by_index: dict[str, Any] = {}
    header: list[str] = []
    for start, end, values in _records(path):
        if not header:
            header = values
            continue
        where = f"{path} at byte {start:,}"
        if len(values) != len(header):
            raise ValueError(f"{where}: a row has {len(values)} fields, and the header {len(header)}.")
        fields: dict[str, Any] = dict(zip(header, values, strict=True))
        for name in images:
            text = fields.get(name)
            if not text:
                fields.pop(name, None)
            elif len(text) <= _LONGEST_INDEX:
                fields[name] = by_index.get(text)
            else:
                column = header.index(name)
                texts = _texts(text)
                found = [
                    StoredImage(
                        where,
                        functools.partial(_from_tsv, path, start, end, column, place),
                        hashlib.sha256(_decoded(each, where)).hexdigest(),
                    )
                    for place, each in enumerate(texts)
                ]
                fields[name] = found if len(found) > 1 else found[0]
                by_index[fields.get("index", "")] = fields[name]
        yield fields


def _records(path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """Yields where each record begins and ends, in bytes, and its fields; a quoted field may hold line breaks."""
    end = 0
    before = csv.field_size_limit(sys.maxsize)
    try:
        with path.open("rb") as file:

            def lines() -> Iterator[str]:
                nonlocal end
                for line in file:
                    end += len(line)
                    yield line.decode("utf-8-sig" if end == len(line) else "utf-8")

            start = 0
            for values in csv.reader(lines(), delimiter="\t", strict=True):
                if values:
                    yield start, end, values
                start = end
    finally:
        csv.field_size_limit(before)


def _from_tsv(path: Path, start: int, end: int, column: int, place: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        text = file.read(end - start).decode("utf-8-sig")
    before = csv.field_size_limit(sys.maxsize)
    try:
        (values,) = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    finally:
        csv.field_size_limit(before)
    return _decoded(_texts(values[column])[place], str(path))


def _texts(text: str) -> list[str]:
    """Returns the base64 texts of a column: one, or a written list of them."""
    if text.startswith("[") and text.endswith("]"):
        try:
            return [str(each) for each in ast.literal_eval(text)]
        except (ValueError, SyntaxError):
            pass  # it is no base64 either, which is said where it is decoded
    return [text]


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as err:
        raise ValueError(f"{where}: a picture is not base64 ({err}).") from err


def image_parts(images: Sequence[StoredImage], settings: Mapping[str, float]) -> list[Part]:
    """Returns parts of a message, with the settings of its protocol, such as ``min_pixels``."""
    return [{"type": "image", "image": image, **settings} for image in images]


def user_parts(*parts: Part | str) -> list[Mapping[str, Any]]:
    """Returns the conversation that consists of one question; texts become parts of their own."""
    made = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": made}]


def media_of(messages: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Returns the images and videos of a conversation, in the order in which they are read."""
    return [
        part
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part.get("type") in ("image", "video")
    ]


def resolved(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns a conversation whose images are bytes; videos stay paths."""

    def part_of(part: Part) -> Part:
        image = part.get("image")
        return {**part, "image": image.read()} if isinstance(image, StoredImage) else part

    return [
        message if isinstance(message["content"], str)
        else {**message, "content": [part_of(part) for part in message["content"]]}
        for message in messages
    ]  # fmt: skip


def check_media(messages: Sequence[Mapping[str, Any]], where: str) -> None:
    """Checks that what a question shows is there.

    Raises:
      ValueError: it shows nothing, or a file is missing.
    """
    parts = media_of(messages)
    if not parts:
        raise ValueError(f"{where}: the question has no picture; docs/evaluating_vision.md says how data keep them.")
    for part in parts:
        image, video = part.get("image"), part.get("video")
        if isinstance(image, StoredImage) and image.is_missing:
            raise ValueError(f"{where}: there is no image {image.where}; put it there, or correct the row.")
        if isinstance(video, str) and not Path(video).is_file():
            raise ValueError(f"{where}: there is no video {video}; docs/evaluating_vision.md says where videos lie.")
