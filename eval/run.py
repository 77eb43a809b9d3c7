"""Evaluates a model: ``python -m eval.run CONFIG.py [overrides]``.

Samples are stored as they finish, and a run with the same settings in the same directory goes on
with those that are missing. Greedy runs resume to the same samples; sampled ones draw the missing
samples anew.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.config import EvalConfig, generation
from eval.engine import generate_replies, load_engine
from eval.report import INTERVALS, summarize, table, write_report
from eval.samples import (
    Reply,
    append_row,
    check_directory,
    file_digest,
    open_directory,
    read_finished,
    sample_row,
    samples_path,
)
from eval.tasks import get_task
from eval.tasks.base import Document, Task
from qwen35_jax.command import config_from_command_line, one_line_errors
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.inference.engine import Engine


@dataclasses.dataclass(frozen=True)
class _Job:
    """A task with its documents and where its samples go."""

    task: Task
    documents: list[Document]
    path: Path
    digest: str

    def missing(self, finished: Mapping[str, Any]) -> list[Document]:
        """Returns the documents without a stored sample."""
        return [document for document in self.documents if str(document.id) not in finished]


def run(config: EvalConfig, engine: Engine | None = None) -> dict[str, Any]:
    """Runs every task of the configuration and returns what results.json holds.

    Args:
      config: what to run.
      engine: generates the responses; by default the configured model is loaded, once all data is
        read and checked, and only if a sample is missing.

    Raises:
      ValueError: model, data or directory are not usable; nothing is overwritten.
    """
    started = time.monotonic()
    out = Path(config.out)
    jobs = [_job(get_task(name), config, out) for name in config.tasks]
    settings = _settings(config, jobs)
    check_directory(out, settings)
    finished = {job.task.name: read_finished(job.path) for job in jobs}
    if engine is None and any(job.missing(finished[job.task.name]) for job in jobs):
        engine = load_engine(config.model, max_batch=config.max_batch)
    open_directory(out, settings)
    results: dict[str, Any] = {
        "model": config.model.path,
        "adapter": config.model.adapter,
        "mode": config.mode,
        "protocol": config.protocol,
        "intervals": INTERVALS,
        "tasks": {},
    }
    rows_by_task = {}
    for job in jobs:
        name, task_started = job.task.name, time.monotonic()
        missing = job.missing(finished[name])
        if missing:
            finished[name] |= _generate(engine, config, job, missing)
        rows_by_task[name] = [finished[name][str(document.id)] for document in job.documents]
        results["tasks"][name] = summarize(rows_by_task[name]) | {
            "resumed": len(job.documents) - len(missing),
            "generation_seconds": time.monotonic() - task_started,
        }
    results["total_seconds"] = time.monotonic() - started
    write_report(out, results, rows_by_task)
    return results


def _job(task: Task, config: EvalConfig, out: Path) -> _Job:
    data_file, documents = task.load(config.protocol, config.data_dir, config.limit)
    return _Job(task, documents, samples_path(out, task.name), file_digest(data_file))


def _settings(config: EvalConfig, jobs: Sequence[_Job]) -> dict[str, Any]:
    """Returns the resolved configuration, and what identifies the weights and the data behind it."""
    settings = dataclasses.asdict(config)
    del settings["out"]
    settings["generation"] = {
        job.task.name: dataclasses.asdict(generation(config, job.task.lm_eval_max_new_tokens)) for job in jobs
    }
    settings["data_sha256"] = {job.task.name: job.digest for job in jobs}
    settings["weights"] = {
        str(path): [path.stat().st_size, path.stat().st_mtime_ns]
        for source in (config.model.path, config.model.adapter)
        if source
        for path in sorted(find_folder(source).glob("*.safetensors"))
    }
    return settings


def _generate(
    engine: Engine, config: EvalConfig, job: _Job, documents: Sequence[Document]
) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    with tqdm(total=len(documents), desc=job.task.name, unit="sample", file=sys.stderr) as bar:

        def finish(index: int, reply: Reply) -> None:
            row = sample_row(documents[index], reply)
            append_row(job.path, row)
            rows[str(row["id"])] = row
            bar.set_postfix(correct=sum(each["correct"] for each in rows.values()), refresh=False)
            bar.update()

        generate_replies(
            engine,
            [document.prompt for document in documents],
            generation(config, job.task.lm_eval_max_new_tokens),
            mode=config.mode,
            seed=config.seed,
            on_reply=finish,
        )
    return rows


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments = sys.argv[1:] if argv is None else argv
    config = config_from_command_line(arguments, EvalConfig, program="python -m eval.run")
    print(table(run(config)))
    print(f"report: {Path(config.out) / 'report.html'}")


if __name__ == "__main__":
    main()
