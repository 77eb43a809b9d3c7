"""Scores stored responses without a model: ``python -m eval.score --task NAME --responses FILE.jsonl``.

A row is ``{"id", "response"}``, where ``id`` is the document's (IFEval: ``key``; MMLU-Pro: ``question_id``; else its
``id`` or its row number from 0), ``finish_reason`` may say ``"length"`` or ``"loop"``, and ``repeat`` tells several
responses to one document apart. Documents without a response are left out and counted as ``missing``. Solved examples
of a prompt are not needed.

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

from eval.card import Size, stored_against_card
from eval.protocols import Mode, ProtocolName
from eval.report import write_report
from eval.samples import (
    Reply,
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
from eval.tasks.data import Row, read_rows
from qwen35_jax import gcs
from qwen35_jax.command import one_line_errors, parse
from qwen35_jax.hf.hub import find_file
from qwen35_jax.processing.thinking import CLOSE, split_text
from qwen35_jax.storage import file_digest
from qwen35_jax.wording import options_as_typed, options_of

logger = logging.getLogger(__name__)

_REASONS = ("stop", "length", "budget", "loop", "aborted", "error")
# What a stored sample says besides its text.
_KEPT = (
    "prompt_ids", "token_ids", "num_tokens", "close_positions", "seed", "closed_by_budget", "engine", "template",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """How stored responses are scored."""

    task: str
    """Whose rules apply: a task by name, or a Python file of your own that defines TASK."""
    responses: str
    """JSONL or Parquet file, also of a bucket, with rows {"id", "response"}: the id is the document's key, question_id
    or id, or its row number from 0."""
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
    loaded = task.load(config.protocol, config.data_dir, split=config.split, asked=False)
    documents = loaded.documents
    responses = find_file(config.responses)
    replies = _read_replies(responses, config.opened)
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
    protocol = task.protocol(config.protocol)
    samples = [
        make_sample(document, reply, protocol, repeat)
        for document in answered
        for repeat, reply in by_document[str(document.id)].items()
    ]
    mode: Mode = "thinking" if any(sample["thinking"] is not None for sample in samples) else "non_thinking"
    summary = {
        "protocol": config.protocol,
        "source": protocol.source,
        "data": loaded.source,
        "data_sha256": loaded.digest,
        "cut_is_wrong": protocol.cut_is_wrong,
        "missing": missing,
    } | summarize(
        [light(sample) for sample in samples], headline=task.headline, macro=task.macro, thinking=mode == "thinking",
    )  # fmt: skip
    if config.size is not None:
        summary["card"] = stored_against_card(summary, task.name, config.size, mode, config.protocol, missing=missing)
    results: dict[str, Any] = {
        "responses": config.responses,
        "protocol": config.protocol,
        "intervals": INTERVALS,
        "tasks": {task.name: summary},
        "seconds": {"total": time.monotonic() - started},
    }
    if config.out is not None:
        digests: dict[str, Any] = {"data_sha256": loaded.digest, "responses_sha256": file_digest(responses)}
        if own := digests_of_files([config.task]):
            digests["task_sha256"] = own
        file = _write(config, task.name, Path(config.out), digests, samples)
        write_report(Path(config.out), results, {task.name: file}, {task.name: documents})
    return results


def _read_replies(path: Path, opened: bool) -> dict[SampleKey, Reply]:
    replies: dict[SampleKey, Reply] = {}
    places: dict[SampleKey, str] = {}
    for row in read_rows(path):
        if lacking := [name for name in ("id", "response") if name not in row.fields]:
            raise ValueError(
                f"{row.where}: no field {lacking[0]!r}; the row has {sorted(row.fields)}, and a row to score is "
                '{"id": ..., "response": ...}.'
            )
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
        return Reply(row.get("thinking", str, type(None)), response, reason, multiple_closes=closes, **known)
    # Without the flag nobody says that the block was closed, so the text itself shows it.
    split = split_text(response, opened=True if opened else None)
    return Reply(
        split.thinking, split.answer, reason, token_ids=token_ids, multiple_closes=split.multiple_closes,
        engine=row.fields.get("engine"), template=row.fields.get("template"),
    )  # fmt: skip


def _write(
    config: ScoreConfig, task: str, out: Path, digests: dict[str, Any], samples: list[dict[str, Any]]
) -> SampleFile:
    settings: dict[str, Any] = dataclasses.asdict(config)
    del settings["out"]
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
