"""Evaluates a model: ``python -m eval.run CONFIG.py [overrides]``.

Samples are stored as they finish, and a run with the same settings in the same directory goes on with those that are
missing. A sample's seed follows from its document and repeat, so that a resumed run draws what a whole one draws.
"""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.backends import check_mtp_head, count_drafts, generate_replies, load_engine
from eval.config import EvalConfig, generation
from eval.report import summarize, table, write_report
from eval.samples import (
    Reply,
    SampleKey,
    append_sample,
    check_directory,
    make_sample,
    open_directory,
    read_finished,
    sample_key,
    samples_path,
)
from eval.stats import INTERVALS, clustered_counts
from eval.tasks import get_task
from eval.tasks.base import Document, Task
from qwen35_jax.command import config_from_command_line, one_line_errors
from qwen35_jax.compiled import keep_compiled_programs
from qwen35_jax.distributed import leave_out_absent_tpu
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.source import load_tokenizer
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.requests import seed_of
from qwen35_jax.storage import file_digest
from qwen35_jax.wording import options_as_typed, options_of

Samples = dict[SampleKey, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class _Job:
    """A task with its documents and where its samples go."""

    task: Task
    documents: list[Document]
    repeats: int
    path: Path
    digest: str

    @property
    def keys(self) -> list[SampleKey]:
        """The samples that the finished job has, in the order of the documents."""
        return [(str(document.id), repeat) for document in self.documents for repeat in range(self.repeats)]

    def missing(self, finished: Mapping[SampleKey, Any], repeat: int) -> list[int]:
        """Returns the places of the documents without a stored sample of this repeat."""
        return [place for place, document in enumerate(self.documents) if (str(document.id), repeat) not in finished]


def run(config: EvalConfig, engine: Engine | None = None) -> dict[str, Any]:
    """Runs every task of the configuration and returns what results.json holds.

    Args:
      config: what to run.
      engine: generates the responses; by default the configured model is loaded, once all data is
        read and checked, and only if a sample is missing or MTP drafts are to be counted.

    Raises:
      ValueError: model, data or directory are not usable; nothing is overwritten.
    """
    started = time.monotonic()
    out = Path(config.out)
    tasks = [get_task(name) for name in config.tasks]
    if engine is None:
        load_tokenizer(config.model)  # what is wrong with the model is said before anything about data
    jobs = [_job(task, config, out) for task in tasks]
    settings = _settings(config, jobs)
    check_directory(out, settings)
    finished = {job.task.name: read_finished(job.path) for job in jobs}
    complete = all(key in finished[job.task.name] for job in jobs for key in job.keys)
    if engine is None and (config.mtp_acceptance or not complete):
        engine = load_engine(config.model, config.mesh, slots=config.slots)
    if engine is not None and config.mtp_acceptance:
        check_mtp_head(engine)
    open_directory(out, settings)
    results: dict[str, Any] = {
        "model": config.model.path,
        "adapter": config.model.adapter,
        "mode": config.mode,
        "protocol": config.protocol,
        "repeats": config.repeats,
        "intervals": INTERVALS,
        "tasks": {},
    }
    samples_by_task = {}
    for job in jobs:
        name = job.task.name
        results["tasks"][name], samples_by_task[name] = _run_job(engine, config, job, finished[name])
    results["total_seconds"] = time.monotonic() - started
    write_report(out, results, samples_by_task)
    return results


def _job(task: Task, config: EvalConfig, out: Path) -> _Job:
    data_file, documents = task.load(config.protocol, config.data_dir, config.limit)
    return _Job(task, documents, config.repeats, samples_path(out, task.name), file_digest(data_file))


def _settings(config: EvalConfig, jobs: Sequence[_Job]) -> dict[str, Any]:
    """Returns the settings that samples depend on, and what identifies the weights and the data behind them."""
    settings: dict[str, Any] = dataclasses.asdict(config)
    del settings["out"], settings["mtp_acceptance"]
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


def _run_job(
    engine: Engine | None, config: EvalConfig, job: _Job, finished: Samples
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Generates the missing samples of a task; returns its summary and all its samples."""
    started, resumed = time.monotonic(), sum(key in finished for key in job.keys)
    if engine is not None and resumed < len(job.keys):
        finished = finished | _generate(engine, config, job, finished)
    samples = [finished[key] for key in job.keys]
    summary = summarize(samples) | {"resumed": resumed, "generation_seconds": time.monotonic() - started}
    if engine is not None and config.mtp_acceptance:
        summary["metrics"]["mtp_acceptance"] = _mtp_acceptance(engine, config, job, finished)
    return summary, samples


def _generate(engine: Engine, config: EvalConfig, job: _Job, finished: Samples) -> Samples:
    """Generates and stores what is missing, one repeat after the other."""
    samples: Samples = {}
    num_correct = 0
    missing = [job.missing(finished, repeat) for repeat in range(job.repeats)]
    with tqdm(total=sum(map(len, missing)), desc=job.task.name, unit="sample", file=sys.stderr) as bar:

        def store(sample: dict[str, Any]) -> None:
            nonlocal num_correct
            append_sample(job.path, sample)
            samples[sample_key(sample)] = sample
            num_correct += sample["correct"]
            bar.set_postfix(correct=num_correct, refresh=False)
            bar.update()

        for repeat, places in enumerate(missing):
            if places:
                _generate_repeat(engine, config, job, places, repeat, store)
    return samples


def _generate_repeat(
    engine: Engine,
    config: EvalConfig,
    job: _Job,
    places: Sequence[int],
    repeat: int,
    store: Callable[[dict[str, Any]], None],
) -> None:
    documents = [job.documents[place] for place in places]
    seed = _seed(config.seed, repeat)

    def finish(index: int, reply: Reply) -> None:
        store(make_sample(documents[index], reply, repeat))

    generate_replies(
        engine,
        [document.messages for document in documents],
        generation(config, job.task.lm_eval_max_new_tokens),
        mode=config.mode,
        seeds=[seed_of(seed, place) for place in places],
        on_reply=finish,
    )


def _seed(seed: int, repeat: int) -> int:
    """Returns the seed of a repeat. The first repeat uses the seed of the run; the others use unrelated seeds."""
    if repeat == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{repeat}".encode()).digest()[:4], "big") >> 1


def _mtp_acceptance(engine: Engine, config: EvalConfig, job: _Job, finished: Samples) -> dict[str, float]:
    """Returns the share of accepted drafts, with an interval that takes the drafts of one sample as a cluster."""
    samples = [finished[(str(document.id), 0)] for document in job.documents]
    conversations = [document.messages for document in job.documents]
    counts = count_drafts(engine, conversations, [sample["token_ids"] for sample in samples], mode=config.mode)
    drafted = [count for count in counts if count[1]]
    # Where no reply has a second token nothing is known.
    value, low, high = clustered_counts(*zip(*drafted, strict=True)) if drafted else (0.0, 0.0, 1.0)
    accepted, proposed = (sum(each[place] for each in counts) for place in (0, 1))
    return {"value": value, "low": low, "high": high, "accepted": accepted, "proposed": proposed}


@one_line_errors()
@options_as_typed(lambda: options_of(EvalConfig))
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments = sys.argv[1:] if argv is None else argv
    config = config_from_command_line(arguments, EvalConfig, program="python -m eval.run")
    leave_out_absent_tpu()
    keep_compiled_programs()
    print(table(run(config)))
    print(f"report: {Path(config.out) / 'report.html'}")


if __name__ == "__main__":
    main()
