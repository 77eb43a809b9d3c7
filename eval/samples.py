"""An evaluation directory: its settings, and one line for every finished sample."""

import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from eval.protocols import Protocol
from eval.tasks.base import CUT, Document, Outcome, Verdict
from qwen35_jax.inference.requests import FinishReason
from qwen35_jax.storage import write_json
from qwen35_jax.wording import type_of

logger = logging.getLogger(__name__)

Sample = Mapping[str, Any]
"""A sample as it is stored: see ``make_sample``."""
SampleKey = tuple[str, int]
"""What identifies a sample within its task: the document's id as text, and the number of the repeat."""

_HEAVY = ("response", "thinking", "prompt_ids", "token_ids")


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model wrote to one document, split into thinking and answer.

    Attributes:
      thinking: the text of the think block; None where there was none.
      response: what is scored; empty if the think block never closed.
      finish_reason: why it ended, ``"error"`` if a backend gave none; None for stored text that does not say.
      prompt_ids, token_ids: the prompt and the generated tokens; None where they are not known.
      close_positions: places of ``</think>`` among the generated tokens; the first one ends the thinking.
      multiple_closes: how many ``</think>`` the response holds.
      seed: of sampling.
      closed_by_budget: whether a budget ended the thinking.
      num_tokens: how many were generated, where the tokens themselves are not known.
      failure: why a backend gave none.
      engine, template: the fingerprints of what wrote it and of the chat template; None where they are not known.
      judge: what was asked to read the response where no rule could, or ``stored`` for an extraction that stood beside
        a stored response; None for the rules alone.
      extraction: what it read; None where that was nothing.
    """

    thinking: str | None
    response: str
    finish_reason: FinishReason | Literal["error"] | None
    prompt_ids: list[int] | None = None
    token_ids: list[int] | None = None
    close_positions: list[int] | None = None
    multiple_closes: int = 0
    seed: int | None = None
    closed_by_budget: bool = False
    num_tokens: int | None = None
    failure: str | None = None
    engine: str | None = None
    template: str | None = None
    judge: str | None = None
    extraction: Any = None


def outcome_of(verdict: Verdict, reply: Reply) -> Outcome:
    """Returns the one class that a sample falls into. Whether an ``ok`` one is right, ``correct`` says."""
    cut: dict[str | None, Outcome] = {"length": "truncated", "loop": "loop", "error": "error", "aborted": "error"}
    if reply.finish_reason in cut:
        return cut[reply.finish_reason]
    if not reply.response.strip():
        return "empty"
    return "ok" if verdict.parsed else "unparsed"


def make_sample(document: Document, reply: Reply, protocol: Protocol, repeat: int = 0) -> dict[str, Any]:
    """Returns the scored sample as it is stored.

    Its keys: ``id`` and ``group`` of the document, ``repeat`` (from 0), ``response``, ``thinking``, ``prediction``,
    ``target``, ``correct``, ``outcome``, ``finish_reason``, ``metrics`` with the list of trials of each metric,
    ``prompt_ids``, ``token_ids``, ``num_tokens`` (generated), ``close_positions``, ``multiple_closes``,
    ``closed_by_budget``, ``seed``, ``engine`` and ``template``; where a request failed ``failure``, the reason; where
    the document has it ``circle``; where a judge was asked ``judge``, and where it has read the response ``extraction``
    and ``by_rule``, which has ``correct`` and ``metrics`` as the rules alone give them. A response that was cut off is
    wrong under a protocol that says so: ``correct`` and every metric are 0 then.

    Raises:
      ValueError: the document's score is no ``Verdict``.
    """
    judging = document.judging
    judge, extraction = (None, None) if judging is None else (reply.judge, reply.extraction)
    by_rule = document.score(reply.response)
    verdict = by_rule if judging is None or extraction is None else judging.score(extraction)
    for each in (by_rule, verdict):
        if not isinstance(each, Verdict):
            raise ValueError(
                f"the score of document {document.id!r} returned {type_of(each)}; return a Verdict of eval.tasks.base."
            )
    outcome = outcome_of(verdict, reply)
    lost = outcome == "error" or (outcome in CUT and protocol.cut_is_wrong)
    optional = {
        "failure": reply.failure,
        "circle": None if document.circle is None else list(document.circle),
        "judge": judge,
        "extraction": extraction,
        "by_rule": None if verdict is by_rule else _values(by_rule, lost=lost),
    }
    return {
        "id": document.id,
        "group": document.group,
        "repeat": repeat,
        "response": reply.response,
        "thinking": reply.thinking,
        "prediction": verdict.prediction,
        "target": document.target,
        "outcome": outcome,
        "finish_reason": reply.finish_reason,
        **_values(verdict, lost=lost),
        "prompt_ids": reply.prompt_ids,
        "token_ids": reply.token_ids,
        "num_tokens": reply.num_tokens if reply.token_ids is None else len(reply.token_ids),
        "close_positions": reply.close_positions,
        "multiple_closes": reply.multiple_closes,
        "closed_by_budget": reply.closed_by_budget,
        "seed": reply.seed,
        "engine": reply.engine,
        "template": reply.template,
    } | {name: value for name, value in optional.items() if value is not None}


def _values(verdict: Verdict, *, lost: bool) -> dict[str, Any]:
    """Returns what a verdict gives a sample: whether it is right, and its metrics; a lost one has nothing."""
    metrics = {name: [0.0 if lost else float(value) for value in trials] for name, trials in verdict.metrics.items()}
    return {"correct": verdict.correct and not lost, "metrics": metrics}


def sample_key(sample: Sample) -> SampleKey:
    """Returns what identifies a stored sample; without a repeat it is the first."""
    return str(sample["id"]), int(sample.get("repeat", 0))


def samples_path(out: Path, task: str, process: int = 0) -> Path:
    """Returns where the samples of a task are stored; processes but the first have files of their own meanwhile."""
    return out / "samples" / (f"{task}.process{process}.jsonl" if process else f"{task}.jsonl")


def left_over(out: Path, task: str, processes: int) -> list[Path]:
    """Returns the files of processes that an earlier start had and this one, of so many processes, lacks."""
    own = {samples_path(out, task, process) for process in range(processes)}
    return [path for path in sorted((out / "samples").glob(f"{task}.process*.jsonl")) if path not in own]


class SampleFile:
    """The samples of one task, appended as they finish and in the documents' order once all are there.

    Of each sample only what the summary needs is held: long runs write gigabytes.

    Args:
      path: the file. A last line that was cut short is removed.

    Attributes:
      finished: the stored samples without their texts and tokens, but with ``num_tokens``.

    Raises:
      ValueError: a line is not a stored sample.
    """

    def __init__(self, path: Path):
        self.path = path
        self.finished: dict[SampleKey, dict[str, Any]] = {}
        self._places: dict[SampleKey, tuple[int, int]] = {}
        self._end = 0
        if path.exists():
            self._read()

    def _read(self) -> None:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    logger.warning("%s: its last line was cut short; that sample is generated again.", self.path)
                    break
                try:
                    self._note(json.loads(line), len(line))
                except (ValueError, KeyError, TypeError) as err:
                    raise ValueError(
                        f"{self.path}:{number}: not a stored sample ({err}); remove the line or use another --out."
                    ) from err
        os.truncate(self.path, self._end)

    def _note(self, sample: Sample, size: int) -> None:
        key = sample_key(sample)
        self.finished[key] = light(sample)
        self._places[key] = self._end, size
        self._end += size

    def append(self, sample: Sample) -> None:
        """Adds one finished sample."""
        # Half a surrogate pair, which UTF-8 has no bytes for, becomes JSON's own escape of it.
        line = (json.dumps(sample, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self.path.open("ab") as file:
            file.write(line)
        self._note(sample, len(line))

    def read(self, key: SampleKey) -> dict[str, Any]:
        """Returns a stored sample, whole."""
        start, size = self._places[key]
        with self.path.open("rb") as file:
            file.seek(start)
            return json.loads(file.read(size))

    def absorb(self, paths: Iterable[Path]) -> None:
        """Takes over the samples of other files, and removes these."""
        for path in paths:
            other = SampleFile(path)
            for key in other.finished:
                if key not in self.finished:
                    self.append(other.read(key))
            path.unlink()

    def sort(self, keys: Sequence[SampleKey]) -> None:
        """Writes the file anew with the samples of ``keys``, in this order."""
        new = self.path.with_suffix(".sorted")
        with self.path.open("rb") as old, new.open("wb") as file:
            for start, size in [self._places[key] for key in keys]:
                old.seek(start)
                file.write(old.read(size))
        new.replace(self.path)
        sizes = [self._places[key][1] for key in keys]
        *starts, self._end = itertools.accumulate(sizes, initial=0)
        self.finished = {key: self.finished[key] for key in keys}
        self._places = dict(zip(keys, zip(starts, sizes, strict=True), strict=True))


def light(sample: Sample) -> dict[str, Any]:
    """Returns a sample without its texts and tokens, but with ``num_tokens``, how many were generated."""
    small = {name: value for name, value in sample.items() if name not in _HEAVY}
    tokens = sample.get("token_ids")
    return small | {"num_tokens": sample.get("num_tokens") if tokens is None else len(tokens)}


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
