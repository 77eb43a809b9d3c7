"""Scores stored responses without a model: ``python -m eval.score --task NAME --responses FILE.jsonl``.

A row is ``{"id", "response"}``, where ``id`` is the document's (IFEval: ``key``; MMLU-Pro: ``question_id``; else its
``id`` or its row number from 0), ``finish_reason`` may say ``"length"`` or ``"loop"``, and ``repeat`` tells several
responses to one document apart. Documents without a response are left out and counted as ``missing``. Solved examples
of a prompt are not needed.

Answers in the layouts of other evaluations are read too (``eval.answers`` lists them). Where their rows hold the
questions, and no data directory is given, these are scored: no download and no pictures are needed.

A row with ``thinking`` (None if there was none), as ``eval.run`` and ``qwen35 generate`` write it, is
split already and taken as it stands. Other responses lose their think block by the rule of
``qwen35_jax.processing.thinking``. Say ``--opened`` if the prompt had opened the block: a response that
never closes it then has no answer.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.utils.logging import disable_propagation

from eval.answers import extraction_of, files_of, questions_in, read_answers
from eval.card import Size, against_card, check_published
from eval.config import JudgeConfig
from eval.jobs import said_of
from eval.judge import ask_judge, needs_judge, settings_of
from eval.origin import recorded
from eval.protocols import Mode, Protocol, ProtocolName
from eval.report import write_report
from eval.samples import (
    Reply,
    Sample,
    SampleFile,
    SampleKey,
    check_directory,
    light,
    make_sample,
    open_directory,
    samples_path,
)
from eval.stats import INTERVALS
from eval.summary import summarize, table
from eval.tasks import digests_of_files, get_task
from eval.tasks.base import Document, Loaded, Task
from eval.tasks.data import Row, of_split
from eval.version import code
from qwen35_jax import gcs
from qwen35_jax.command import one_line_errors, parse
from qwen35_jax.hf.hub import find_file
from qwen35_jax.processing.thinking import CLOSE, split_text
from qwen35_jax.storage import file_digest, fingerprint
from qwen35_jax.wording import options_as_typed, options_of

logger = logging.getLogger(__name__)

_REASONS = ("stop", "length", "budget", "loop", "aborted", "error")
# What a stored sample says besides its text.
_KEPT = (
    "prompt_ids", "token_ids", "num_tokens", "close_positions", "seed", "closed_by_budget", "failure", "engine",
    "template",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """How stored responses are scored."""

    task: str
    """Whose rules apply: a task by name, or a Python file of your own that defines TASK."""
    responses: str
    """JSONL or Parquet file, also of a bucket, with rows {"id", "response"}: the id is the document's key, question_id
    or id, or its row number from 0. Or a file or folder of answers as MMMU, MathVista, OCRBench or VLMEvalKit have."""
    protocol: ProtocolName = "official"
    """Whose rules of extraction apply, where a task has several."""
    opened: bool = False
    """Whether the prompts had opened the think block, so that the responses begin inside it."""
    split: str | None = None
    """The split that the responses answer, such as test where a task scores val by default."""
    data_dir: str | None = None
    """Folder, also of a bucket (``gs://``), with TASK/SPLIT.jsonl or .parquet; without it the task's data comes from
    the hub at a pinned revision."""
    size: Size | None = None
    """The published size that wrote the responses; the figure of its model card is then told beside the score."""
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    out: str | None = None
    """Evaluation directory to write; by default only the table is printed."""

    def __post_init__(self):
        if self.out is not None:
            gcs.check_is_path(self.out)


def score(config: ScoreConfig) -> dict[str, Any]:
    """Scores the responses and returns what results.json holds.

    Raises:
      ValueError: task, data, responses or directory are not usable; nothing is overwritten.
    """
    started = time.monotonic()
    task = get_task(config.task)
    responses = Path(config.responses)
    if not responses.is_dir():
        responses = find_file(config.responses)
    of_run, of_task = recorded(responses, task.name)
    if config.split is None:
        config = dataclasses.replace(config, split=of_run.get("split"))
    rows = _of_split(config, task, read_answers(responses))
    loaded = _load(config, task, rows, of_run.get("limit"))
    protocol = task.protocol(config.protocol)
    samples, missing = _samples(config, loaded, _read_replies(rows, config.opened), protocol)
    mode = of_run["mode"] if "mode" in of_run else _mode(rows, samples)
    results: dict[str, Any] = {
        "responses": config.responses,
        **of_run,
        "mode": mode,
        "protocol": config.protocol,
        **settings_of(config.judge),
        "code": code(),
        "intervals": INTERVALS,
    }
    summary = {
        "protocol": config.protocol,
        "source": protocol.source,
        "data": loaded.source,
        "data_sha256": loaded.digest,
        **of_task,
        "cut_is_wrong": protocol.cut_is_wrong,
        "missing": missing,
    } | said_of(task, protocol) | summarize(
        [light(sample) for sample in samples], headline=task.headline, macro=task.macro,
        max_new_tokens=of_task.get("max_new_tokens"), thinking=mode == "thinking",
    )  # fmt: skip
    if config.size is not None:
        # Foreign text without a thought is taken for an answer without thinking.
        meant: Mode = mode or "non_thinking"
        check_published(task.name, config.size, meant)
        summary["card"] = against_card(summary, task.name, results, config.size, meant)
    results |= {"tasks": {task.name: summary}, "seconds": {"total": time.monotonic() - started}}
    if config.out is not None:
        digests: dict[str, Any] = {"data_sha256": loaded.digest, "responses_sha256": _digest(responses)}
        if own := digests_of_files([config.task]):
            digests["task_sha256"] = own
        file = _write(config, task.name, Path(config.out), digests, samples)
        write_report(Path(config.out), results, {task.name: file}, {task.name: loaded.documents})
    return results


def _mode(rows: Sequence[Row], samples: Sequence[Sample]) -> Mode | None:
    """Returns how responses were asked for, where they show it."""
    if any(sample["thinking"] is not None for sample in samples):
        return "thinking"
    # What we wrote says that there was no thought. Other texts may have lost theirs, scored ones too.
    ours = [
        "thinking" in row.fields and (row.fields.get("engine") is not None or "outcome" not in row.fields)
        for row in rows
    ]
    return "non_thinking" if all(ours) else None


def _samples(
    config: ScoreConfig, loaded: Loaded, replies: dict[SampleKey, Reply], protocol: Protocol
) -> tuple[list[dict[str, Any]], int]:
    """Returns the scored samples in the order of the documents, and how many documents have no response."""
    documents = loaded.documents
    by_document: dict[str, dict[int, Reply]] = {}
    for (key, repeat), reply in sorted(replies.items(), key=lambda item: item[0]):
        by_document.setdefault(key, {})[repeat] = reply
    unknown = sorted(by_document.keys() - {str(document.id) for document in documents})
    if unknown:
        raise ValueError(
            f"{config.responses} has ids that are not in {loaded.source}: {len(unknown):,}, first {unknown[0]}; the "
            f"ids there run from {documents[0].id} to {documents[-1].id}."
        )
    answered = [document for document in documents if str(document.id) in by_document]
    missing = len(documents) - len(answered)
    if missing:
        logger.warning("%d of %d documents have no response and are left out.", missing, len(documents))
    samples = [
        make_sample(document, reply, protocol, repeat)
        for document in answered
        for repeat, reply in by_document[str(document.id)].items()
    ]
    if config.judge.url is not None:
        samples = _judged(config.judge, documents, samples, protocol)
    return samples, missing


def _of_split(config: ScoreConfig, task: Task, rows: list[Row]) -> list[Row]:
    """Returns the rows that answer the scored split: files of others hold several, and name them."""
    split = config.split or task.data.splits[0]
    if config.split is None and not any(row.fields.get("split") == split for row in rows):
        return rows
    return of_split(rows, task.data, split, Path(config.responses))


def _load(config: ScoreConfig, task: Task, rows: list[Row], limit: int | None) -> Loaded:
    """Returns the documents that answers belong to: the task's, or those that the answers' own rows hold.

    Args:
      limit: how many of the task's were asked, if that is known.
    """
    if not questions_in(rows, task.question_fields):
        return task.load(config.protocol, config.data_dir, limit, config.split, asked=False)
    if config.data_dir is None:
        source = f"{config.responses}, whose rows hold the questions"
        return task.load(config.protocol, None, asked=False, given=(source, rows))
    # A key of answers alone lacks the options, and the order of choices may be that of the answers' rows alone.
    more = {str(row.fields["id"]): row.fields for row in rows}
    return task.load(config.protocol, config.data_dir, split=config.split, asked=False, more=more)


def _judged(
    config: JudgeConfig, documents: Sequence[Document], samples: list[dict[str, Any]], protocol: Protocol
) -> list[dict[str, Any]]:
    """Returns the samples with those that no rule could read as the judge reads them."""
    by_id = {document.id: document for document in documents}
    places = [place for place, sample in enumerate(samples) if needs_judge(by_id[sample["id"]], sample)]
    pairs = [(by_id[samples[place]["id"]], samples[place]) for place in places]
    judged = dict(enumerate(samples))
    ask_judge(config, pairs, protocol, lambda number, sample: judged.__setitem__(places[number], sample))
    return [*judged.values()]


def _digest(responses: Path) -> str:
    """Returns the SHA-256 of a file, or what identifies the files of a folder."""
    if not responses.is_dir():
        return file_digest(responses)
    return fingerprint(files_of(responses))


def _read_replies(rows: Sequence[Row], opened: bool) -> dict[SampleKey, Reply]:
    replies: dict[SampleKey, Reply] = {}
    places: dict[SampleKey, str] = {}
    for row in rows:
        repeat = row.get("repeat", int) if "repeat" in row.fields else 0
        key = str(row.get("id", int, str)), repeat
        if key in replies:
            raise ValueError(
                f"{row.where}: id {key[0]} has a response at {places[key]} already; number several responses to one "
                "document with `repeat`."
            )
        replies[key], places[key] = _reply(row, opened), row.where
    return replies


def _reply(row: Row, opened: bool) -> Reply:
    reason = row.fields.get("finish_reason")
    if reason not in (None, *_REASONS):
        raise ValueError(f"{row.where}: finish_reason={reason!r}; it is one of {', '.join(_REASONS)}, or absent.")
    response, token_ids = row.get("response", str), row.fields.get("token_ids")
    if "thinking" in row.fields:
        closes = row.fields.get("multiple_closes")
        closes = response.count(CLOSE) if closes is None else row.get("multiple_closes", int)
        known = {name: row.fields[name] for name in _KEPT if row.fields.get(name) is not None}
        known |= extraction_of(row)
        return Reply(row.get("thinking", str, type(None)), response, reason, multiple_closes=closes, **known)
    # Without the flag nobody says that the block was closed, so the text itself shows it.
    split = split_text(response, opened=True if opened else None)
    return Reply(
        split.thinking, split.answer, reason, token_ids=token_ids, multiple_closes=split.multiple_closes,
        engine=row.fields.get("engine"), template=row.fields.get("template"), **extraction_of(row),
    )  # fmt: skip


def _write(
    config: ScoreConfig, task: str, out: Path, digests: dict[str, Any], samples: list[dict[str, Any]]
) -> SampleFile:
    settings: dict[str, Any] = dataclasses.asdict(config)
    del settings["out"], settings["judge"]
    settings |= settings_of(config.judge)
    settings |= digests
    check_directory(out, settings)
    open_directory(out, settings)
    path = samples_path(out, task)
    path.unlink(missing_ok=True)
    file = SampleFile(path)
    for sample in samples:
        file.append(sample)
    return file


@one_line_errors()
@options_as_typed(lambda: options_of(ScoreConfig))
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    disable_propagation()  # the hub's messages have a handler of their own
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(arguments, ScoreConfig, program="python -m eval.score")
    print(table(score(config)))


if __name__ == "__main__":
    main()
