"""The samples that the page shows: some of each kind that is not right, with texts short enough for one page."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from eval.report import thumbnails
from eval.report.thumbnails import Thumbnail
from eval.report.wording import visible
from eval.samples import Sample, SampleFile, SampleKey
from eval.tasks.base import OUTCOMES, Document

SHOWN = 20
"""Most samples of one kind."""
_ALL_BYTES = 1_700_000
"""What all samples of a page may take."""
_SAMPLE_BYTES = 24_000
"""What one may take."""
_MARKUP_BYTES = 1_200
"""What the page needs around the words of a sample."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A text, or its beginning and its end with the number of characters between them."""

    length: int
    head: str
    left_out: int = 0
    tail: str = ""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A sample as the page shows it.

    Attributes:
      facts: its short values by name.
      images: what its question shows.
    """

    name: str
    group: str
    facts: dict[str, str]
    texts: dict[str, Text]
    images: tuple[Thumbnail, ...] = ()


@dataclasses.dataclass(frozen=True)
class Kind:
    """Samples of one kind, in the order of the documents.

    Attributes:
      name: ``wrong`` for an answer that was found and is not right; else the outcome.
      count: how many there are; some of them are shown.
    """

    name: str
    count: int
    shown: list[Failure]


def failures_of(
    files: Mapping[str, SampleFile], documents: Mapping[str, Sequence[Document]], *, style: str
) -> dict[str, list[Kind]]:
    """Returns by task the kinds of samples that are not right, with some samples of each.

    Which are shown is drawn at random, but from their names alone: the same ones every time.

    Args:
      documents: by task, for the prompts.
      style: how they were asked.
    """
    drawn = {task: _draw(task, file) for task, file in files.items()}
    shown = sum(len(keys) for kinds in drawn.values() for _, keys in kinds.values())
    room = min(_SAMPLE_BYTES, _ALL_BYTES // max(1, shown))
    picture_room = thumbnails.ALL_BYTES // max(1, shown)
    failures = {}
    for task, kinds in drawn.items():
        asked = {str(document.id): document for document in documents.get(task, ())}
        failures[task] = [
            Kind(
                name,
                count,
                [_failure(files[task].read(key), asked.get(key[0]), style, (room, picture_room)) for key in keys],
            )
            for name, (count, keys) in kinds.items()
        ]
    return failures


def _draw(task: str, file: SampleFile) -> dict[str, tuple[int, list[SampleKey]]]:
    """Returns for each kind how many samples it has, and the keys of those that are shown."""
    kinds: dict[str, list[SampleKey]] = {"wrong" if name == "ok" else name: [] for name in OUTCOMES}
    for key, sample in file.finished.items():
        if not sample["correct"]:
            kinds["wrong" if sample["outcome"] == "ok" else sample["outcome"]].append(key)

    def lot(key: SampleKey) -> bytes:
        return hashlib.blake2b(f"{task}/{key[0]}/{key[1]}".encode("utf-8", "replace"), digest_size=8).digest()

    drawn = {name: set(sorted(keys, key=lot)[:SHOWN]) for name, keys in kinds.items()}
    return {name: (len(keys), [key for key in keys if key in drawn[name]]) for name, keys in kinds.items() if keys}


def _failure(sample: Sample, document: Document | None, style: str, rooms: tuple[int, int]) -> Failure:
    room, picture_room = rooms
    number = f", repeat {sample['repeat']}" if sample["repeat"] else ""
    texts = {
        "prompt": None if document is None else prompt_text(document, style),
        "thinking": sample["thinking"],
        "response": sample["response"],
    }
    present = {name: text for name, text in texts.items() if text}
    name, group, facts = _brief(sample["id"], 60) + number, _brief(sample["group"] or "", 60), _facts(sample)
    room = max(0, room - _MARKUP_BYTES - sum(map(_size, (name, group, *facts.values()))))
    parts = _share_out([_size(visible(text)) if len(text) <= room else room for text in present.values()], room)
    shown = {name: shorten(text, most) for (name, text), most in zip(present.items(), parts, strict=True)}
    images = () if document is None else thumbnails.of_messages(document.messages, picture_room)
    return Failure(name, group, facts, shown, images)


def _facts(sample: Sample) -> dict[str, str]:
    tokens, closes, found = sample.get("num_tokens"), sample.get("close_positions"), sample["prediction"]
    # Some tasks extract nothing from any response.
    found = "nothing" if found is None and sample["outcome"] != "ok" else found
    metrics = [f"{name} {', '.join(f'{value:g}' for value in values)}" for name, values in sample["metrics"].items()]
    facts: dict[str, Any] = {
        "extracted": None if found is None else _brief(found),
        "right answer": None if sample["target"] is None else _brief(sample["target"]),
        "scores": _brief("; ".join(metrics), 300),
        "ended by": sample["finish_reason"],
        "judge": sample.get("judge"),
        "tokens": None if tokens is None else f"{tokens:,}",
        "thinking tokens": f"{closes[0]:,}" if closes else None,
        "thought closed by the budget": "yes" if sample.get("closed_by_budget") else None,
        "seed": sample.get("seed"),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _brief(value: Any, most: int = 100) -> str:
    text = visible(str(value))
    return text if len(text) <= most else text[: most - 1] + "…"


def prompt_text(document: Document, style: str) -> str:
    """Returns what a document asks, for a reader."""
    if style == "likelihood" and document.likelihood is not None:
        asked = document.likelihood
        choices = [f"{label}:{choice}" for label, choice in zip(asked.labels, asked.choices, strict=True)]
        return "\n".join([asked.context, "", *choices])
    if style == "text" and document.text is not None:
        return document.text
    if [message["role"] for message in document.messages] == ["user"]:
        return _content(document.messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {_content(message['content'])}" for message in document.messages)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or f"({part.get('type')})" for part in content)


def _size(text: str) -> int:
    """Returns the bytes of a text when it is escaped, at most."""
    entities = 4 * sum(text.count(mark) for mark in "&<>\"'")
    return len(text.encode("utf-8", "replace")) + entities


def _share_out(sizes: Sequence[int], room: int) -> list[int]:
    """Returns how much of a room each gets: short ones all that they need, and the others equal parts of the rest."""
    given = [0] * len(sizes)
    for done, place in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        given[place] = min(sizes[place], room // (len(sizes) - done))
        room -= given[place]
    return given


def shorten(text: str, most: int) -> Text:
    """Returns a text with its middle left out if it takes more than ``most`` bytes when it is escaped.

    Its control characters are made visible.
    """
    kept = min(len(text), most)  # a character takes a byte or more
    while True:
        head, tail = visible(text[: kept - kept // 2]), visible(text[len(text) - kept // 2 :])
        size = _size(head) + _size(tail)
        if size <= most:
            break
        kept = min(kept - 1, kept * most // size)
    if kept == len(text):
        return Text(kept, head + tail)
    return Text(len(text), head, len(text) - kept, tail)
