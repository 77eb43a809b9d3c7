"""The samples that the page shows: some of each kind that is not right, with texts short enough for one page."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.wording import visible
from eval.samples import Sample, SampleFile, SampleKey
from eval.tasks.base import OUTCOMES, Document

SHOWN = 20
"""Most samples of one kind."""
_TEXT_BYTES = 1_500_000
"""All texts of a page, in bytes."""
_SAMPLE_BYTES = 24_000
"""Most of one sample."""
_AROUND = 700
"""What the page needs for a sample besides its long texts, in bytes."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A text, or its beginning and its end with the number of characters between them."""

    length: int
    head: str
    left_out: int = 0
    tail: str = ""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A sample as the page shows it; ``facts`` are its short values by name."""

    name: str
    group: str | None
    facts: dict[str, str]
    texts: dict[str, Text]


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
    room = min(_SAMPLE_BYTES, max(0, _TEXT_BYTES // max(1, shown) - _AROUND))
    failures = {}
    for task, kinds in drawn.items():
        asked = {str(document.id): document for document in documents.get(task, ())}
        failures[task] = [
            Kind(name, count, [_failure(files[task].read(key), asked.get(key[0]), style, room) for key in keys])
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


def _failure(sample: Sample, document: Document | None, style: str, room: int) -> Failure:
    number = f", repeat {sample['repeat']}" if sample["repeat"] else ""
    texts = {
        "prompt": None if document is None else prompt_text(document, style),
        "thinking": sample["thinking"],
        "response": sample["response"],
    }
    present = {name: visible(text) for name, text in texts.items() if text}
    rooms = _share_out([_size(text) for text in present.values()], room)
    return Failure(
        name=_brief(sample["id"], 60) + number,
        group=None if sample["group"] is None else _brief(sample["group"], 60),
        facts=_facts(sample),
        texts={name: shorten(text, most) for (name, text), most in zip(present.items(), rooms, strict=True)},
    )


def _facts(sample: Sample) -> dict[str, str]:
    tokens, closes = sample.get("token_ids"), sample.get("close_positions")
    facts: dict[str, Any] = {
        "extracted": "nothing" if sample["prediction"] is None else _brief(sample["prediction"]),
        "right answer": None if sample["target"] is None else _brief(sample["target"]),
        "ended by": sample["finish_reason"],
        "tokens": None if tokens is None else f"{len(tokens):,}",
        "thinking tokens": f"{closes[0]:,}" if closes else None,
        "thought closed by the budget": "yes" if sample.get("closed_by_budget") else None,
        "seed": sample.get("seed"),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _brief(value: Any, most: int = 120) -> str:
    text = visible(value)
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
    """Returns a text with its middle left out if it takes more than ``most`` bytes when it is escaped."""
    size = _size(text)
    if size <= most:
        return Text(len(text), text)
    kept = len(text) * most // size
    while True:
        head, tail = text[: kept - kept // 2], text[len(text) - kept // 2 :]
        if _size(head) + _size(tail) <= most:
            return Text(len(text), head, len(text) - kept, tail)
        kept = kept * 9 // 10
