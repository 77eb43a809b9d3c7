"""Evaluates a model: ``python -m eval.run CONFIG.py [overrides]``.

Samples are stored as they finish, and a run with the same settings in the same directory goes on with those that are
missing. A sample's seed follows from the run's seed, the task, the document and the repeat, so that a resumed run draws
what a whole one draws. Several processes share out the documents; the first one gathers what the others wrote.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from eval.backends.base import Backend, Request
from eval.backends.engine import EngineBackend, check_mtp_head, count_drafts, load_engine, template_of, weights_of
from eval.backends.server import ServerBackend
from eval.card import against_card
from eval.config import EvalConfig, max_new_tokens_of, sampling_of
from eval.likelihood import choose
from eval.origin import describe
from eval.progress import Progress
from eval.protocols import Protocol
from eval.report import write_report
from eval.samples import (
    Reply,
    SampleFile,
    SampleKey,
    check_directory,
    left_over,
    make_sample,
    open_directory,
    samples_path,
)
from eval.stats import clustered_counts
from eval.summary import summarize, table
from eval.tasks import digests_of_files, get_task
from eval.tasks.base import Document, Loaded, Task
from eval.team import Team
from qwen35_jax.command import config_from_command_line, one_line_errors
from qwen35_jax.compiled import keep_compiled_programs
from qwen35_jax.config import ModelConfig
from qwen35_jax.distributed import join, leave_out_absent_tpu, raise_together
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.source import load_tokenizer
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.requests import seed_of
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
    tasks = _tasks(config)
    # An engine that is given may span all processes: each of them then makes the same calls and gets all results.
    team = Team() if engine is not None else Team.of_all_processes()
    with raise_together(team.gather):
        # What is wrong with the model is said before anything about data.
        template = _template(config, engine)
        settings, jobs = _prepare(config, tasks, out, engine, template, team)
    wanted = _missing(jobs, team)
    is_told = config.server.url is None or (out / "results.json").exists()
    backend = _backend(config, engine) if wanted or config.mtp_acceptance or not is_told else None
    if config.mtp_acceptance and isinstance(backend, EngineBackend):
        check_mtp_head(backend.engine)
    if team.is_first:
        open_directory(out, settings)
    team.gather(None)
    if not (out / "config.json").exists():  # the processes do not share the disk
        open_directory(out, settings)
    if backend is not None:
        _fill(config, backend, wanted[team.index :: team.count])
    _gather_samples(jobs, team)
    engines = {sample.get("engine") for job in jobs for sample in job.file.finished.values()}
    results = describe(config, out, backend, engines)
    labels = results["labels"]
    model = _model_config(config, engine)
    for job in jobs:
        results["tasks"][job.task.name] = _summary(config, job, model, labels, team)
        if config.mtp_acceptance and isinstance(backend, EngineBackend):
            acceptance = _mtp_acceptance(backend.engine, config, job, team)
            results["tasks"][job.task.name]["metrics"]["mtp_acceptance"] = acceptance
    resumed = sum(len(job.keys) for job in jobs) - len(wanted)
    results["seconds"] = {"total": time.monotonic() - started, "resumed_samples": resumed}
    if team.is_first:
        write_report(out, results, {job.task.name: job.loaded.documents for job in jobs})
    return results


def _template(config: EvalConfig, engine: Engine | None) -> str | None:
    if config.server.url is not None:
        return None
    return template_of(load_tokenizer(config.model) if engine is None else engine.tokenizer)


def _tasks(config: EvalConfig) -> list[Task]:
    tasks = [get_task(name) for name in config.tasks]
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise ValueError(f"tasks={list(config.tasks)} have the names {names}; give each file's TASK a name of its own.")
    return tasks


def _model_config(config: EvalConfig, engine: Engine | None) -> ModelConfig | None:
    if engine is not None:
        return engine.model.config
    return None if config.server.url is not None else ModelConfig.from_hf(find_folder(config.model.path))


def _prepare(
    config: EvalConfig, tasks: Sequence[Task], out: Path, engine: Engine | None, template: str | None, team: Team
) -> tuple[dict[str, Any], list[Job]]:
    """Reads and checks all data, and what the directory holds."""
    loaded = [task.load(config.protocol, config.data_dir, config.limit, config.split) for task in tasks]
    samplings = [
        sampling_of(config, task.protocol(config.protocol), lambda: _model_config(config, engine)) for task in tasks
    ]
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
    settings = _settings(config, tasks, loaded, template)
    check_directory(out, settings)
    jobs = []
    for task, documents, sampling in zip(tasks, loaded, samplings, strict=True):
        protocol = task.protocol(config.protocol)
        file = SampleFile(samples_path(out, task.name, team.index))
        if team.is_first:
            file.absorb(left_over(out, task.name, team.count))
        limit = max_new_tokens_of(config, protocol)
        jobs.append(Job(task, protocol, documents, sampling, limit, config.repeats, file))
    return settings, jobs


def _settings(
    config: EvalConfig, tasks: Sequence[Task], loaded: Sequence[Loaded], template: str | None
) -> dict[str, Any]:
    """Returns the settings that samples depend on, and what identifies the weights and the data behind them."""
    settings: dict[str, Any] = dataclasses.asdict(config)
    for name in ("out", "mtp_acceptance", "processes", "data_dir"):
        del settings[name]
    for name in ("connections", "key_variable"):
        del settings["server"][name]
    names = [task.name for task in tasks]
    settings["data_sha256"] = {name: documents.digest for name, documents in zip(names, loaded, strict=True)}
    if own := digests_of_files(config.tasks):
        settings["task_sha256"] = own
    if config.model.path and config.server.url is None:
        settings["weights"] = weights_of(config.model)
        settings["template"] = template
    return settings


def _missing(jobs: Sequence[Job], team: Team) -> list[_Wanted]:
    """Returns the samples that no process has stored; those that failed are asked for again."""
    answered = [[key for key, sample in job.file.finished.items() if sample["outcome"] != "error"] for job in jobs]
    stored = team.gather([[list(key) for key in keys] for keys in answered])
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
    """Writes and stores samples that are missing."""
    if not wanted:
        return

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
    """Returns the seed of one sample, a function of these four alone."""
    return seed_of(seed, f"{task}/{document}/{repeat}")


def _gather_samples(jobs: Sequence[Job], team: Team) -> None:
    """Brings the samples of all processes into the files of the first one, in the order of the documents."""
    for job in jobs:
        own = [] if team.is_first else list(job.file.finished)
        for start in range(0, max(team.gather(len(own))), _GATHERED_AT_ONCE):
            for samples in team.gather([job.file.read(key) for key in own[start : start + _GATHERED_AT_ONCE]]):
                for sample in samples if team.is_first else ():
                    job.file.append(sample)
        if team.is_first:
            job.file.sort(job.keys)
        team.gather(None)
        if not team.is_first:
            job.file.path.unlink(missing_ok=True)


def _summary(
    config: EvalConfig, job: Job, model: ModelConfig | None, labels: Sequence[str], team: Team
) -> dict[str, Any]:
    """Returns the summary of a task, the same in every process."""
    if not team.is_first:
        return team.gather(None)[0]
    samples = [job.file.finished[key] for key in job.keys]
    asked = {
        "protocol": config.protocol,
        "source": job.protocol.source,
        "data": job.loaded.source,
        "data_sha256": job.loaded.digest,
        "sampling": json.loads(json.dumps(dataclasses.asdict(job.sampling))),
        "max_new_tokens": job.max_new_tokens,
        "cut_is_wrong": job.protocol.cut_is_wrong,
    }
    summary = asked | summarize(
        samples, headline=job.task.headline, macro=job.task.macro, max_new_tokens=job.max_new_tokens,
        thinking=config.mode == "thinking",
    )  # fmt: skip
    card = against_card(summary, job.task.name, config, model, labels=labels)
    return team.gather(summary if card is None else summary | {"card": card})[0]


def _mtp_acceptance(engine: Engine, config: EvalConfig, job: Job, team: Team) -> dict[str, float]:
    """Returns the share of accepted drafts, with an interval that takes the drafts of one sample as a cluster."""
    if not team.is_first:
        return team.gather(None)[0]
    tokens = [job.file.read((str(document.id), 0))["token_ids"] for document in job.loaded.documents]
    counts = count_drafts(engine, job.loaded.documents, tokens, mode=config.mode)
    drafted = [count for count in counts if count[1]]
    # Where no reply has a second token nothing is known.
    value, low, high = clustered_counts(*zip(*drafted, strict=True)) if drafted else (0.0, 0.0, 1.0)
    accepted, proposed = (sum(each[place] for each in counts) for place in (0, 1))
    return team.gather({"value": value, "low": low, "high": high, "accepted": accepted, "proposed": proposed})[0]


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
