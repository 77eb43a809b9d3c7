"""Evaluates a model: ``python -m eval.run CONFIG.py [overrides]``.

Samples are stored as they finish, and a run with the same settings in the same directory goes on with those that are
missing. A sample's seed follows from the run's seed, the task, the document and the repeat, so that a resumed run draws
what a whole one draws. Several processes share out the documents; the first one gathers what the others wrote.
"""

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from eval.backends.base import Backend, Request
from eval.backends.engine import EngineBackend, check_mtp_head, load_engine, template_of
from eval.backends.server import ServerBackend
from eval.card import against_card, size_of
from eval.config import EvalConfig
from eval.jobs import Job, Missing, failures_of, missing_of, prepare, said_of, tasks_of
from eval.judge import ask_judge, needs_judge
from eval.likelihood import choose
from eval.origin import describe
from eval.progress import Progress
from eval.report import write_report
from eval.samples import Reply, make_sample, open_directory
from eval.stats import clustered_counts
from eval.summary import summarize, table
from eval.tasks.media import media_of
from eval.team import Team
from qwen35_jax.command import config_from_command_line, one_line_errors
from qwen35_jax.compiled import keep_compiled_programs
from qwen35_jax.config import ModelConfig
from qwen35_jax.distributed import join, leave_out_absent_tpu, raise_together
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.source import load_processor, load_tokenizer
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.requests import seed_of
from qwen35_jax.inference.speculative import acceptance_by_completion
from qwen35_jax.wording import options_as_typed, options_of

logger = logging.getLogger(__name__)

# Samples that hold their texts, and documents whose choices are scored.
_AT_ONCE = 64


def run(config: EvalConfig, engine: Engine | None = None) -> dict[str, Any]:
    """Runs every task of the configuration and returns what results.json holds.

    Args:
      config: what to run.
      engine: writes the responses; by default the configured model is loaded, once all data is read and checked, and
        only if a sample is missing or MTP drafts are to be counted.

    Raises:
      ValueError: model, data or directory are not usable; nothing is overwritten. Or all requests of a task failed; the
        other tasks are reported.
    """
    started = time.monotonic()
    out = Path(config.out)
    tasks = tasks_of(config)
    # An engine that is given may span all processes: each of them then makes the same calls and gets all results.
    team = Team() if engine is not None else Team.of_all_processes()
    with raise_together(team.gather):
        # What is wrong with the model is said before anything about data.
        template = _template(config, engine)
        settings, jobs = prepare(config, tasks, out, lambda: _model_config(config, engine), template, team)
    missing = missing_of(jobs, team)
    resumed = sum(len(job.keys) for job in jobs) - len(missing)
    # A server's labels are known from its probe alone, or from results that were written after one.
    knows_labels = config.server.url is None or (out / "results.json").exists()
    shows = any(media_of(document.messages) for job in jobs for document in job.loaded.documents)
    backend = _backend(config, engine, shows=shows) if missing or config.mtp_acceptance or not knows_labels else None
    if config.mtp_acceptance and isinstance(backend, EngineBackend):
        check_mtp_head(backend.engine, shows=shows)
    if team.is_first:
        open_directory(out, settings)
    team.gather(None)
    if not (out / "config.json").exists():  # the processes do not share the disk
        open_directory(out, settings)
    if backend is not None:
        _fill(config, backend, missing[team.index :: team.count])
    _gather_samples(jobs, team)
    unanswered = _unanswered(jobs, team)
    jobs = [job for job in jobs if job.task.name not in unanswered]
    if config.judge.url is not None:
        _judge(config, jobs, team)
    engines = {sample.get("engine") for job in jobs for sample in job.file.finished.values()}
    results = describe(config, out, backend, engines)
    model = _model_config(config, engine)
    size = None if model is None else size_of(model)
    for job in jobs:
        results["tasks"][job.task.name] = _summary(config, job, results, size, team)
        if config.mtp_acceptance and isinstance(backend, EngineBackend):
            acceptance = _mtp_acceptance(backend.engine, job, team)
            results["tasks"][job.task.name]["metrics"]["mtp_acceptance"] = acceptance
    results["seconds"] = {"total": time.monotonic() - started, "resumed_samples": resumed}
    if team.is_first and jobs:
        documents = {job.task.name: job.loaded.documents for job in jobs}
        write_report(out, results, {job.task.name: job.file for job in jobs}, documents)
    if unanswered:
        others = f" That of {', '.join(results['tasks'])} is in {out / 'report.html'}." if jobs else ""
        raise ValueError(f"{'; '.join(unanswered.values())}. There is no score of {', '.join(unanswered)}.{others}")
    return results


def _template(config: EvalConfig, engine: Engine | None) -> str | None:
    if config.server.url is not None:
        return None
    return template_of(load_tokenizer(config.model) if engine is None else engine.tokenizer)


def _model_config(config: EvalConfig, engine: Engine | None) -> ModelConfig | None:
    if engine is not None:
        return engine.model.config
    return None if config.server.url is not None else ModelConfig.from_hf(find_folder(config.model.path))


def _backend(config: EvalConfig, engine: Engine | None, *, shows: bool) -> Backend:
    """Returns what writes the responses; ``shows`` says that some questions have images or videos."""
    if engine is not None:
        return EngineBackend(engine)
    if config.server.url is not None:
        return ServerBackend(config)
    if shows and config.model.path and ModelConfig.from_hf(find_folder(config.model.path)).vision is None:
        raise ValueError(
            f"{config.model.path} has no vision tower, but the questions have images or videos; give a checkpoint that "
            "has one, or leave these tasks out."
        )
    processor = load_processor(config.model) if shows else None
    return EngineBackend(load_engine(config, vision=shows), config.model, processor)


def _fill(config: EvalConfig, backend: Backend, missing: Sequence[Missing]) -> None:
    """Writes and stores samples that are missing."""
    if not missing:
        return

    def store(place: int, reply: Reply) -> dict[str, Any]:
        each = missing[place]
        reply = dataclasses.replace(reply, engine=backend.fingerprint, template=backend.template)
        sample = make_sample(each.document, reply, each.job.protocol, each.repeat)
        each.job.file.append(sample)
        return sample

    if config.style == "likelihood":
        for start in range(0, len(missing), _AT_ONCE):
            part = missing[start : start + _AT_ONCE]
            for each, sample in zip(part, choose([each.document for each in part], backend), strict=True):
                each.job.file.append(sample)
        return
    requests = [
        Request(
            each.document, config.style, config.mode, each.job.sampling, each.job.max_new_tokens,
            seed=seed_of_sample(config.seed, each.job.task.name, each.document.id, each.repeat),
        )
        for each in missing
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
        for start in range(0, max(team.gather(len(own))), _AT_ONCE):
            for samples in team.gather([job.file.read(key) for key in own[start : start + _AT_ONCE]]):
                for sample in samples if team.is_first else ():
                    job.file.append(sample)
        if team.is_first:
            job.file.sort(job.keys)
        team.gather(None)
        if not team.is_first:
            job.file.path.unlink(missing_ok=True)


def _unanswered(jobs: Sequence[Job], team: Team) -> dict[str, str]:
    """Returns the tasks all of whose requests failed, with what to say of each; warns of other requests that failed."""
    if not team.is_first:
        return team.gather(None)[0]
    unanswered = {}
    for job in jobs:
        said, is_whole = failures_of(job)
        if said is not None and is_whole:
            unanswered[job.task.name] = said
        elif said is not None:
            logger.warning("%s.", said)
    return team.gather(unanswered)[0]


def _judge(config: EvalConfig, jobs: Sequence[Job], team: Team) -> None:
    """Lets the judge read what no rule could; the first process asks it."""
    with raise_together(team.gather):
        for job in jobs if team.is_first else ():
            documents = {str(document.id): document for document in job.loaded.documents}
            keys = [key for key in job.keys if needs_judge(documents[key[0]], job.file.finished[key])]
            pairs = [(documents[key[0]], job.file.read(key)) for key in keys]
            # Each is stored at once: a run that is broken off asks about the others alone.
            ask_judge(config.judge, pairs, job.protocol, lambda _, sample, file=job.file: file.append(sample))
            job.file.sort(job.keys)


def _summary(config: EvalConfig, job: Job, results: dict[str, Any], size: str | None, team: Team) -> dict[str, Any]:
    """Returns the summary of a task, the same in every process.

    Args:
      results: how the samples came about.
      size: the published one that the model has.
    """
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
    } | said_of(job.task, job.protocol)
    summary = asked | summarize(
        samples, headline=job.task.headline, macro=job.task.macro, max_new_tokens=job.max_new_tokens,
        thinking=config.mode == "thinking",
    )  # fmt: skip
    card = against_card(summary, job.task.name, results, size, config.mode)
    return team.gather(summary if card is None else summary | {"card": card})[0]


def _mtp_acceptance(engine: Engine, job: Job, team: Team) -> dict[str, float]:
    """Returns the share of accepted drafts, with an interval that takes the drafts of one sample as a cluster."""
    if not team.is_first:
        return team.gather(None)[0]
    samples = map(job.file.read, job.keys)
    prompts, tokens = zip(*((sample["prompt_ids"], sample["token_ids"]) for sample in samples), strict=True)
    counts = acceptance_by_completion(engine.model, prompts, tokens, max_batch=engine.slots)
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
