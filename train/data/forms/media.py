"""Finds the images and videos of a row: in the parts of its messages, and in columns of their own.

Data sets of the hub keep them in a column, as one value or a list. What takes them, in reading order, are the parts of
a content that are an image or a video without a source, and the words ``<image>`` and ``<video>`` in the text of users
and tools.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from train.data.rows import Conversation, Media, RowError, text_in
from train.data.values import named

_COLUMNS = {"image": ("images", "image"), "video": ("videos", "video")}
MEDIA_COLUMNS = tuple(name for names in _COLUMNS.values() for name in names)
"""The columns that hold images or videos."""
_INDEX = "index"
# Who may show an image or a video.
_SHOW = ("user", "tool")


def media_column(row: Mapping[str, Any]) -> str | None:
    """Returns the first column of a row that holds images or videos."""
    return next((name for name in MEDIA_COLUMNS if _values(row.get(name))), None)


def place_media(
    row: Mapping[str, Any], messages: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], tuple[Media, ...]]:
    """Gives every image and video of the messages its source.

    Args:
      messages: their contents are strings, or lists of strings and ``Media``.

    Returns:
      The messages as `train.data.rows.Conversation` has them, and its media.

    Raises:
      RowError: there are more places for images or videos than the column holds, or fewer.
    """
    columns = {kind: _column(row, kind) for kind in _COLUMNS}
    if not any(values for _, values in columns.values()) and all(isinstance(each["content"], str) for each in messages):
        return messages, ()
    taken = dict.fromkeys(columns, 0)

    def sourced(media: Media, where: str) -> Media:
        if media.source is not None:
            return media
        (name, values), number = columns[media.kind], taken[media.kind]
        taken[media.kind] += 1
        if number >= len(values):
            raise RowError(
                "vision",
                f"{where} holds {_counted(media.kind, number + 1)} without a source{_misnamed(media)}, "
                f"{_held(name, values)}",
            )
        if media.options.get(_INDEX, number) != number:
            raise RowError(
                "vision", f"{where} asks for number {media.options[_INDEX]!r} of {name!r} where number {number} is next"
            )
        options = {key: value for key, value in media.options.items() if key != _INDEX}
        return Media(media.kind, values[number], options)

    placed, media = [], []
    for number, message in enumerate(messages, start=1):
        where = f"message {number} ({message['role']})"
        parts = [sourced(each, where) if isinstance(each, Media) else each for each in _parts(message, columns)]
        found = [each for each in parts if isinstance(each, Media)]
        media += found
        placed.append({**message, "content": [_plain(each) for each in parts if each]} if found else message)
    for kind, (name, values) in columns.items():
        if taken[kind] < len(values):
            raise RowError(
                "vision",
                f"the row's column {name!r} holds {_many(kind, len(values))}, but its messages have places for "
                f"{taken[kind]}; write <{kind}> in the text where each belongs",
            )
    return placed, tuple(media)


def check_words(row: Mapping[str, Any], content: Conversation, not_read: Iterable[str]) -> None:
    """Checks that no text asks for an image or a video where the row holds none, as under another name of the column.

    Args:
      not_read: the keys of the row that its form does not read.

    Raises:
      RowError: a text does, and the row has no empty list in the column, which says that there are none.
    """
    for kind, names in _COLUMNS.items():
        if any(each.kind == kind for each in content.media) or any(_is_empty_list(row.get(name)) for name in names):
            continue
        for number, message in enumerate(content.messages, start=1):
            if message["role"] in _SHOW and f"<{kind}>" in text_in(message["content"]):
                others = f" (its other keys: {named(other)})" if (other := list(not_read)) else ""
                raise RowError(
                    "no_media",
                    f"message {number} ({message['role']}) holds <{kind}>, but the row holds no {kind} in a column "
                    f"{' or '.join(map(repr, names))}{others}; if the word is only text, give the row "
                    f'"{names[0]}": []',
                )


def _column(row: Mapping[str, Any], kind: str) -> tuple[str, list[Any]]:
    given = [(name, values) for name in _COLUMNS[kind] if (values := _values(row.get(name)))]
    if len(given) > 1:
        raise RowError("ambiguous", f"the row has {' and '.join(repr(name) for name, _ in given)}; keep one")
    return given[0] if given else (_COLUMNS[kind][0], [])


def _values(value: Any) -> list[Any]:
    """Returns what a column holds, one value or several, without what is empty."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [each for each in values if not _is_empty(each)]


def _is_empty_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and not value


def _is_empty(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_empty(each) for each in value.values())
    return value is None or (isinstance(value, str | bytes | list | tuple) and not value)


def _parts(message: Mapping[str, Any], columns: Mapping[str, tuple[str, list[Any]]]) -> Iterator[str | Media]:
    """Yields the parts of a content; the words that stand for media of a column are such parts too."""
    content = message["content"]
    words = [kind for kind, (_, values) in columns.items() if values and message["role"] in _SHOW]
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, Media) or not words:
            yield part
            continue
        for place, piece in enumerate(re.split(f"<({'|'.join(words)})>", part)):
            yield Media(piece) if place % 2 else piece  # pyrefly: ignore[bad-argument-type]


def _plain(part: str | Media) -> dict[str, Any]:
    return {"type": part.kind} if isinstance(part, Media) else {"type": "text", "text": part}


def _counted(kind: str, number: int) -> str:
    return f"{'an image' if kind == 'image' else 'a video'}, number {number} of the row,"


def _misnamed(media: Media) -> str:
    """Names the keys of a part under which its source may stand."""
    keys = [key for key, value in media.options.items() if not isinstance(value, bool | int | float)]
    return f" (what is under {named(keys)} belongs under {media.kind!r})" if keys else ""


def _held(name: str, values: list[Any]) -> str:
    return f"but the row's column {name!r} holds {len(values)}" if values else f"and the row has no column {name!r}"


def _many(kind: str, number: int) -> str:
    return f"{number} {kind}{'s' * (number != 1)}"
