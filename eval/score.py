"""Scores stored responses without a model: ``python -m eval.score --task NAME --responses FILE.jsonl``.

A row is ``{"id", "response"}``, where ``id`` is the document's (IFEval: ``key``; else its ``id`` or
its row number from 0) and ``finish_reason`` may say ``"length"``. A think block at the start of a
response is taken off. Documents without a response are left out and counted as ``missing``.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.config import Protocol
from eval.report import INTERVALS, summarize, table, write_report
from eval.samples import (
    Reply,
    append_row,
    check_directory,
    file_digest,
    open_directory,
    sample_row,
    samples_path,
    split_thinking,
)
from eval.tasks import get_task
from eval.tasks.data import read_rows
from qwen35_jax.command import one_line_errors, parse

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """Scoring of stored responses."""

    task: str
    """Whose rules apply."""
    responses: str
    """JSONL or Parquet file with id and response."""
    protocol: Protocol = "official"
    """Whose rules of extraction apply, where a task has several."""
    data_dir: str | None = None
    """Folder with TASK/SPLIT.jsonl or .parquet; without it the task's data comes from the hub at a pinned revision."""
    out: str | None = None
    """Evaluation directory to write; by default only the table is printed."""


def score(config: ScoreConfig) -> dict[str, Any]:
    """Scores the responses and returns what results.json holds.

    Raises:
      ValueError: task, data, responses or directory are not usable; nothing is overwritten.
    """
    started = time.monotonic()
    data_file, documents = get_task(config.task).load(config.protocol, config.data_dir)
    replies = _read_replies(Path(config.responses))
    unknown = sorted(replies.keys() - {str(document.id) for document in documents})
    if unknown:
        raise ValueError(
            f"{config.responses}: {len(unknown)} ids are not in {data_file} (first {unknown[0]}); its ids run from "
            f"{documents[0].id} to {documents[-1].id}."
        )
    answered = [document for document in documents if str(document.id) in replies]
    missing = len(documents) - len(answered)
    if missing:
        logger.warning("%d of %d documents have no response and are left out.", missing, len(documents))
    rows = [sample_row(document, replies[str(document.id)]) for document in answered]
    results: dict[str, Any] = {
        "responses": config.responses,
        "protocol": config.protocol,
        "intervals": INTERVALS,
        "tasks": {config.task: summarize(rows) | {"missing": missing}},
        "total_seconds": time.monotonic() - started,
    }
    if config.out is not None:
        _write(config, Path(config.out), data_file, rows, results)
    return results


def _read_replies(path: Path) -> dict[str, Reply]:
    replies: dict[str, Reply] = {}
    places: dict[str, str] = {}
    for row in read_rows(path):
        key = str(row.get("id", int, str))
        if key in replies:
            raise ValueError(f"{row.where}: id {key} has a response at {places[key]} already.")
        reason = row.fields.get("finish_reason")
        if reason not in (None, "stop", "length"):
            raise ValueError(f"{row.where}: finish_reason={reason!r}; it is 'stop', 'length' or absent.")
        thinking, response = split_thinking(row.get("response", str), inside=False)
        replies[key], places[key] = Reply(thinking, response, reason), row.where
    return replies


def _write(
    config: ScoreConfig, out: Path, data_file: Path, rows: list[dict[str, Any]], results: dict[str, Any]
) -> None:
    settings = dataclasses.asdict(config)
    del settings["out"]
    settings |= {"data_sha256": file_digest(data_file), "responses_sha256": file_digest(Path(config.responses))}
    check_directory(out, settings)
    open_directory(out, settings)
    path = samples_path(out, config.task)
    path.unlink(missing_ok=True)
    for row in rows:
        append_row(path, row)
    write_report(out, results, {config.task: rows})


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(arguments, ScoreConfig, program="python -m eval.score")
    print(table(score(config)))


if __name__ == "__main__":
    main()
