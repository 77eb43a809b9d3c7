"""An evaluation directory: its settings, and one line for every finished sample."""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.tasks.base import Document
from qwen35_jax.inference.requests import FinishReason
from qwen35_jax.storage import write_json

logger = logging.getLogger(__name__)

Sample = Mapping[str, Any]
"""A sample as it is stored: see ``make_sample``."""
SampleKey = tuple[str, int]
"""What identifies a sample within its task: the document's id as text, and the number of the repeat."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model wrote to one document, split into thinking and answer.

    Attributes:
      thinking: the text of the think block; None where there was none.
      response: what is scored; empty if the think block never closed.
      finish_reason: why the engine ended it; None for stored text that does not say.
      token_ids: the generated tokens; None for stored text without them.
      multiple_closes: how many ``</think>`` the response holds.
    """

    thinking: str | None
    response: str
    finish_reason: FinishReason | None
    token_ids: list[int] | None = None
    multiple_closes: int = 0


def make_sample(document: Document, reply: Reply, repeat: int = 0) -> dict[str, Any]:
    """Returns the scored sample as it is stored.

    Its keys: ``id`` of the document, ``repeat`` (from 0), ``response``, ``thinking``, ``prediction``, ``correct``,
    ``outcome``, ``finish_reason``, ``token_ids``, ``multiple_closes``, and ``metrics`` with the list of trials of each
    metric.
    """
    verdict = document.score(reply.response)
    return {
        "id": document.id,
        "repeat": repeat,
        "response": reply.response,
        "thinking": reply.thinking,
        "prediction": verdict.prediction,
        "correct": verdict.correct,
        "outcome": verdict.outcome(reply.finish_reason),
        "finish_reason": reply.finish_reason,
        "token_ids": reply.token_ids,
        "multiple_closes": reply.multiple_closes,
        "metrics": {name: [float(value) for value in trials] for name, trials in verdict.metrics.items()},
    }


def sample_key(sample: Sample) -> SampleKey:
    """Returns what identifies a stored sample; without a repeat it is the first."""
    return str(sample["id"]), int(sample.get("repeat", 0))


def samples_path(out: Path, task: str) -> Path:
    """Returns where the samples of a task are stored."""
    return out / "samples" / f"{task}.jsonl"


def append_sample(path: Path, sample: Sample) -> None:
    """Adds one finished sample to its file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(sample, ensure_ascii=False) + "\n")


def read_finished(path: Path) -> dict[SampleKey, dict[str, Any]]:
    """Returns the finished samples, and removes a last line that was cut short.

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
    samples = {}
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            sample = json.loads(line)
            samples[sample_key(sample)] = sample
        except (ValueError, KeyError, TypeError) as err:
            raise ValueError(
                f"{path}:{number}: not a stored sample ({err}); remove the line or use another --out."
            ) from err
    return samples


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
    """Makes an evaluation directory that ``check_directory`` found new or equal."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", settings)
    (out / "samples").mkdir(exist_ok=True)
