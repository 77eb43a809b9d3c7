"""An evaluation directory: its settings, and one row for every finished sample."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from eval.tasks.base import Document

logger = logging.getLogger(__name__)

THINK_START, THINK_END = "<think>", "</think>"


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model wrote, in two parts.

    Attributes:
      thinking: the text of the think block; None where there was none.
      response: what is scored; empty if the think block never closed.
      finish_reason: ``"stop"`` or ``"length"``; None for stored text that does not say.
    """

    thinking: str | None
    response: str
    finish_reason: Literal["stop", "length"] | None


def split_thinking(text: str, *, inside: bool) -> tuple[str | None, str]:
    """Splits a model's text at the end of its think block.

    Args:
      text: what the model wrote.
      inside: whether the prompt left the think block open, so that the text begins in it.

    Returns:
      The thinking (None without a think block), and the response without the line breaks before it.
    """
    thinking, end, response = text.partition(THINK_END)
    if not end and not inside and not text.lstrip().startswith(THINK_START):
        return None, text
    return thinking.lstrip().removeprefix(THINK_START).strip("\n"), response.lstrip("\n")


def sample_row(document: Document, reply: Reply) -> dict[str, Any]:
    """Returns the scored sample as it is stored; ``checks`` are its trials by metric."""
    verdict = document.score(reply.response)
    return {
        "id": document.id,
        "response": reply.response,
        "thinking": reply.thinking,
        "prediction": verdict.prediction,
        "correct": verdict.correct,
        "outcome": verdict.outcome(reply.finish_reason),
        "finish_reason": reply.finish_reason,
        "checks": verdict.checks,
    }


def samples_path(out: Path, task: str) -> Path:
    """Returns where the samples of a task are stored."""
    return out / "samples" / f"{task}.jsonl"


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one finished sample to its file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_finished(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the finished samples by id (as text), and removes a last line that was cut short.

    Raises:
      ValueError: another line is not a stored sample.
    """
    if not path.exists():
        return {}
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        logger.warning("%s: its last line was cut short; that sample is generated again.", path)
        os.truncate(path, len(complete))
    rows = {}
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[str(row["id"])] = row
        except (ValueError, KeyError, TypeError) as err:
            raise ValueError(
                f"{path}:{number}: not a stored sample ({err}); remove the line or use another --out."
            ) from err
    return rows


def check_directory(out: Path, settings: Mapping[str, Any]) -> None:
    """Checks that an evaluation directory is new, or was made with equal settings.

    Args:
      settings: everything that samples depend on, as JSON.

    Raises:
      ValueError: the directory holds other settings, or something that is no evaluation.
    """
    path = out / "config.json"
    if not path.exists():
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty and holds no evaluation; choose another --out.")
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"{path} is not valid JSON ({err}); choose another --out.") from err
    settings = json.loads(json.dumps(settings))  # tuples become lists, as they are in the file
    different = sorted(name for name in stored.keys() | settings.keys() if stored.get(name) != settings.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"{out} was made with other settings ({', '.join(different)}; {name} was {stored.get(name)!r}, now "
            f"{settings.get(name)!r}); choose another --out, or delete it."
        )


def open_directory(out: Path, settings: Mapping[str, Any]) -> None:
    """Makes an evaluation directory that `check_directory` found new or equal."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", settings)
    (out / "samples").mkdir(exist_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file all at once, so that a killed run leaves the old one or the new one."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
