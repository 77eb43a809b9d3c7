"""Evaluates a model: ``python -m eval.run CONFIG.py [overrides]``.

Samples are stored as they finish, and a run with the same settings in the same directory goes on with those that are
missing. A sample's seed follows from the run's seed, the task, the document and the repeat, so that a resumed run draws
what a whole one draws. Several processes share out the documents; the first one gathers what the others wrote.
"""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from eval.backends.base import Backend, Request
from eval.backends.engine import EngineBackend, check_mtp_head, count_drafts, load_engine, template_of, weights_of
from eval.backends.server import ServerBackend
from eval.config import EvalConfig, max_new_tokens_of, sampling_of
from eval.likelihood import choose
from eval.progress import Progress
from eval.protocols import Protocol
from eval.report import write_report
from eval.samples import (
    Reply,
    SampleFile,
    SampleKey,
    check_directory,
    make_sample,
    open_directory,
    samples_path,
)
from eval.stats import INTERVALS, clustered_counts
from eval.summary import summarize, table
from eval.tasks import get_task
from eval.tasks.base import Document, Loaded, Task
from qwen35_jax.command import config_from_command_line, one_line_errors
from qwen35_jax.compiled import keep_compiled_programs
from qwen35_jax.config import ModelConfig
from qwen35_jax.distributed import gather, join, leave_out_absent_tpu, raise_together
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.source import load_tokenizer
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.wording import options_as_typed, options_of

_GATHERED_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Job:
    """A task with its documents, how they are asked, and where this process's samples go."""

    task: Task
    protocol: Protocol
    loaded: Loaded
    sampling: SamplingParams
    max_new_tokens: int
    repeats: int
    file: SampleFile

    @property
    def keys(self) -> list[SampleKey]:
        """The samples that the finished job has, in the order of the documents."""
        return [(str(document.id), repeat) for document in self.loaded.documents for repeat in range(self.repeats)]


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """A sample that is missing."""

    job: Job
    document: Document
    repeat: int


def run(config: EvalConfig, engine: Engine | None = None) -> dict[str, Any]:
    """Runs every task of the configuration and returns what results.json holds.

    Args:
      config: what to run.
      engine: writes the responses; by default the configured model is loaded, once all data is read and checked, and
        only if a sample is missing or MTP drafts are to be counted.

    Raises:
      ValueError: model, data or directory are not usable; nothing is overwritten.
    """
    started = time.monotonic()
    out = Path(config.out)
    tasks = [get_task(name) for name in config.tasks]
    with raise_together():
        model = _model_config(config, engine)
        settings, jobs = _prepare(config, tasks, out, model, engine)
    wanted = _missing(jobs)
    backend = _backend(config, engine) if wanted or config.mtp_acceptance else None
    if config.mtp_acceptance and isinstance(backend, EngineBackend):
        check_mtp_head(backend.engine)
    open_directory(out, settings)
    resumed = sum(len(job.keys) for job in jobs) - sum(gather(len(wanted)))
    if backend is not None:
        _fill(config, backend, wanted)
    _gather_samples(jobs)
    results: dict[str, Any] = {
        "model": config.model.path or config.server.model,
        "adapter": config.model.adapter,
        "mode": config.mode,
        "protocol": config.protocol,
        "style": config.style,
        "repeats": config.repeats,
        "seed": config.seed,
        "thinking_budget": config.thinking_budget,
        "labels": list(backend.labels) if backend is not None else [],
        "intervals": INTERVALS,
        "tasks": {},
    }
    for job in jobs:
        results["tasks"][job.task.name] = _summary(config, job)
        if config.mtp_acceptance and isinstance(backend, EngineBackend):
            acceptance = _mtp_acceptance(backend.engine, config, job)
            results["tasks"][job.task.name]["metrics"]["mtp_acceptance"] = acceptance
    results["seconds"] = {"total": time.monotonic() - started, "resumed_samples": resumed}
    if jax.process_index() == 0:
        write_report(out, results, {job.task.name: job.loaded.documents for job in jobs})
    return results


def _model_config(config: EvalConfig, engine: Engine | None) -> ModelConfig | None:
    if engine is not None:
        return engine.model.config
    if config.server.url is not None:
        return None
    load_tokenizer(config.model)  # what is wrong with the model is said before anything about data
    return ModelConfig.from_hf(find_folder(config.model.path))


def _prepare(
    config: EvalConfig, tasks: Sequence[Task], out: Path, model: ModelConfig | None, engine: Engine | None
) -> tuple[dict[str, Any], list[Job]]:
    """Reads and checks all data, and what the directory holds."""
    loaded = [task.load(config.protocol, config.data_dir, config.limit, config.split) for task in tasks]
    samplings = [sampling_of(config, task.protocol(config.protocol), model) for task in tasks]
    for task, sampling in zip(tasks, samplings, strict=True):
        if config.repeats > 1 and sampling.greedy:
            raise ValueError(
                f"repeats={config.repeats}: {task.name} decodes greedily under protocol {config.protocol}, and its "
                "samples would all be equal; use repeats=1, or --sampling card_eval."
            )
        if config.mtp_acceptance and not sampling.greedy:
            raise ValueError(
                f"--mtp-acceptance counts the drafts of greedy decoding, but {task.name} samples under protocol "
                f"{config.protocol}; use --sampling greedy."
            )
    settings = _settings(config, tasks, loaded, engine)
    check_directory(out, settings)
    jobs = []
    for task, documents, sampling in zip(tasks, loaded, samplings, strict=True):
        protocol = task.protocol(config.protocol)
        file = SampleFile(samples_path(out, task.name, jax.process_index()))
        if jax.process_index() == 0:
            file.absorb(path for path in _left_over(out, task.name))
        limit = max_new_tokens_of(config, protocol)
        jobs.append(Job(task, protocol, documents, sampling, limit, config.repeats, file))
    return settings, jobs


def _left_over(out: Path, task: str) -> list[Path]:
    """Returns the files of processes that an earlier start had and this one lacks."""
    paths = sorted((out / "samples").glob(f"{task}.process*.jsonl"))
    own = {samples_path(out, task, process) for process in range(jax.process_count())}
    return [path for path in paths if path not in own]


def _settings(
    config: EvalConfig, tasks: Sequence[Task], loaded: Sequence[Loaded], engine: Engine | None
) -> dict[str, Any]:
    """Returns the settings that samples depend on, and what identifies the weights and the data behind them."""
    settings: dict[str, Any] = dataclasses.asdict(config)
    for name in ("out", "mtp_acceptance", "processes", "data_dir"):
        del settings[name]
    names = [task.name for task in tasks]
    settings["data_sha256"] = {name: documents.digest for name, documents in zip(names, loaded, strict=True)}
    if engine is None and config.server.url is None:
        settings["weights"] = weights_of(config.model)
        settings["template"] = template_of(load_tokenizer(config.model))
    return settings


def _missing(jobs: Sequence[Job]) -> list[_Wanted]:
    """Returns the samples that no process has stored."""
    stored = gather([[list(key) for key in job.file.finished] for job in jobs])
    wanted = []
    for place, job in enumerate(jobs):
        finished = {(key, repeat) for keys in stored for key, repeat in keys[place]}
        wanted += [
            _Wanted(job, document, repeat)
            for document in job.loaded.documents
            for repeat in range(job.repeats)
            if (str(document.id), repeat) not in finished
        ]
    return wanted


def _backend(config: EvalConfig, engine: Engine | None) -> Backend:
    if engine is not None:
        return EngineBackend(engine)
    if config.server.url is not None:
        return ServerBackend(config)
    return EngineBackend(load_engine(config), config.model)


def _fill(config: EvalConfig, backend: Backend, wanted: Sequence[_Wanted]) -> None:
    """Writes and stores this process's share of the samples that are missing."""
    wanted = wanted[jax.process_index() :: jax.process_count()]

    def store(place: int, reply: Reply) -> dict[str, Any]:
        each = wanted[place]
        sample = make_sample(
            each.document, reply, each.job.protocol, each.repeat, template=backend.template, engine=backend.fingerprint
        )
        each.job.file.append(sample)
        return sample

    if config.style == "likelihood":
        for start in range(0, len(wanted), _GATHERED_AT_ONCE):
            part = wanted[start : start + _GATHERED_AT_ONCE]
            for each, sample in zip(part, choose([each.document for each in part], backend), strict=True):
                each.job.file.append(sample)
        return
    requests = [
        Request(
            each.document, config.style, config.mode, each.job.sampling, each.job.max_new_tokens,
            seed=seed_of_sample(config.seed, each.job.task.name, each.document.id, each.repeat),
        )
        for each in wanted
    ]  # fmt: skip
    with Progress(backend, requests) as progress:
        backend.generate(requests, lambda place, reply: progress.finish(place, store(place, reply)))


def seed_of_sample(seed: int, task: str, document: int | str, repeat: int) -> int:
    """Returns the seed of one sample, a function of these four alone; JSON's readers are exact up to 53 bits."""
    digest = hashlib.blake2b(f"{seed}/{task}/{document}/{repeat}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 11


def _gather_samples(jobs: Sequence[Job]) -> None:
    """Brings the samples of all processes into the files of the first one, in the order of the documents."""
    first = jax.process_index() == 0
    for job in jobs:
        own = [] if first else list(job.file.finished)
        for start in range(0, max(gather(len(own))), _GATHERED_AT_ONCE):
            for samples in gather([job.file.read(key) for key in own[start : start + _GATHERED_AT_ONCE]]):
                for sample in samples if first else ():
                    job.file.append(sample)
        if first:
            job.file.sort(job.keys)
        gather(None)
        if not first:
            job.file.path.unlink(missing_ok=True)


def _summary(config: EvalConfig, job: Job) -> dict[str, Any]:
    """Returns the summary of a task, the same in every process."""
    if jax.process_index():
        return gather(None)[0]
    samples = [job.file.finished[key] for key in job.keys]
    asked = {
        "protocol": config.protocol,
        "source": job.protocol.source,
        "data": job.loaded.source,
        "data_sha256": job.loaded.digest,
        "sampling": dataclasses.asdict(job.sampling),
        "max_new_tokens": job.max_new_tokens,
    }
    return gather(asked | summarize(samples, headline=job.task.headline, macro=job.task.macro))[0]


def _mtp_acceptance(engine: Engine, config: EvalConfig, job: Job) -> dict[str, float]:
    """Returns the share of accepted drafts, with an interval that takes the drafts of one sample as a cluster."""
    if jax.process_index():
        return gather(None)[0]
    tokens = [job.file.read((str(document.id), 0))["token_ids"] for document in job.loaded.documents]
    counts = count_drafts(engine, job.loaded.documents, tokens, mode=config.mode)
    drafted = [count for count in counts if count[1]]
    # Where no reply has a second token nothing is known.
    value, low, high = clustered_counts(*zip(*drafted, strict=True)) if drafted else (0.0, 0.0, 1.0)
    accepted, proposed = (sum(each[place] for each in counts) for place in (0, 1))
    return gather({"value": value, "low": low, "high": high, "accepted": accepted, "proposed": proposed})[0]


@one_line_errors()
@options_as_typed(lambda: options_of(EvalConfig))
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments = sys.argv[1:] if argv is None else argv
    config = config_from_command_line(arguments, EvalConfig, program="python -m eval.run")
    leave_out_absent_tpu()
    keep_compiled_programs()
    join(config.processes)
    results = run(config)
    if jax.process_index() == 0:
        print(table(results))
        print(f"report: {Path(config.out) / 'report.html'}")


if __name__ == "__main__":
    main()
