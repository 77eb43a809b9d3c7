"""What a run has to do: its tasks with their documents, all checked, and the samples that are missing."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.backends.engine import weights_of
from eval.config import EvalConfig, max_new_tokens_of, sampling_of
from eval.judge import settings_of as judge_settings
from eval.protocols import Protocol, Style
from eval.samples import SampleFile, SampleKey, check_directory, left_over, samples_path
from eval.tasks import digests_of_files, get_task
from eval.tasks.base import Document, Loaded, Task
from eval.team import Team
from qwen35_jax.config import ModelConfig
from qwen35_jax.inference.sampling import SamplingParams


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
class Missing:
    """A sample that is still to be written."""

    job: Job
    document: Document
    repeat: int


def tasks_of(config: EvalConfig) -> list[Task]:
    """Returns the configured tasks.

    Raises:
      ValueError: one does not exist, or two have one name.
    """
    tasks = [get_task(name) for name in config.tasks]
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise ValueError(f"tasks={list(config.tasks)} have the names {names}; give each file's TASK a name of its own.")
    return tasks


def prepare(
    config: EvalConfig, tasks: Sequence[Task], out: Path, model: Callable[[], ModelConfig | None],
    template: str | None, team: Team,
) -> tuple[dict[str, Any], list[Job]]:  # fmt: skip
    """Reads all data, and checks it and what the directory holds. Nothing is overwritten.

    Args:
      model: gives the model's settings; None for a server's.
      template: identifies the chat template.

    Returns:
      The settings for config.json, and the jobs.

    Raises:
      ValueError: data, settings or directory are not usable.
    """
    loaded = [task.load(config.protocol, config.data_dir, config.limit, config.split) for task in tasks]
    samplings = [sampling_of(config, task.protocol(config.protocol), model) for task in tasks]
    for task, documents, sampling in zip(tasks, loaded, samplings, strict=True):
        _check_sampling(config, task, sampling)
        _check_style(config, task, documents.documents)
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


def _check_sampling(config: EvalConfig, task: Task, sampling: SamplingParams) -> None:
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


def _check_style(config: EvalConfig, task: Task, documents: Sequence[Document]) -> None:
    """Raises an error that names what can be asked, if a document cannot be asked in the configured style."""
    if all(_can_be_asked(document, config.style) for document in documents):
        return
    others = []
    for name in task.protocols:
        first, *_ = task.load(name, config.data_dir, 1, config.split, asked=False).documents
        if _can_be_asked(first, config.style):
            others.append(f"--protocol {name}")
    raise ValueError(
        f"task {task.name} has no prompt of style {config.style} under protocol {config.protocol}; give "
        f"{' or '.join([*others, '--style chat'])}."
    )


def _can_be_asked(document: Document, style: Style) -> bool:
    return {"chat": True, "text": document.text is not None, "likelihood": document.likelihood is not None}[style]


def _settings(
    config: EvalConfig, tasks: Sequence[Task], loaded: Sequence[Loaded], template: str | None
) -> dict[str, Any]:
    """Returns the settings that samples depend on, and what identifies the weights, data and tasks behind them."""
    settings: dict[str, Any] = dataclasses.asdict(config)
    for name in ("out", "mtp_acceptance", "processes", "data_dir"):
        del settings[name]
    for name in ("connections", "key_variable"):
        del settings["server"][name]
    del settings["judge"]
    settings |= judge_settings(config.judge)
    names = [task.name for task in tasks]
    settings["data_sha256"] = {name: documents.digest for name, documents in zip(names, loaded, strict=True)}
    if own := digests_of_files(config.tasks):
        settings["task_sha256"] = own
    if config.model.path and config.server.url is None:
        settings["weights"] = weights_of(config.model)
        settings["template"] = template
    return settings


def said_of(task: Task, protocol: Protocol) -> dict[str, Any]:
    """Returns what a summary says of a task besides what all summaries say."""
    said = {"headline_macro": True} if task.headline_macro else {}
    return said if protocol.modality == "text" else said | {"modality": protocol.modality, "media": protocol.media}


def failures_of(job: Job) -> tuple[str | None, bool]:
    """Returns what to say of requests that failed, None if there are none, and whether no other was made."""
    samples = [job.file.finished[key] for key in job.keys]
    failed = [sample for sample in samples if sample["outcome"] == "error"]
    if not failed:
        return None, False
    said = f"{job.task.name}: {len(failed):,} of {len(samples):,} requests failed"
    first = next((sample for sample in failed if sample.get("failure")), None)
    if first is not None:
        said += f"; the first, of document {first['id']!r}: {first['failure'].rstrip('.')}"
    return said, len(failed) == len(samples)


def missing_of(jobs: Sequence[Job], team: Team) -> list[Missing]:
    """Returns the samples that no process has stored; those that failed are asked for again."""
    answered = [[key for key, sample in job.file.finished.items() if sample["outcome"] != "error"] for job in jobs]
    stored = team.gather([[list(key) for key in keys] for keys in answered])
    missing = []
    for place, job in enumerate(jobs):
        finished = {(key, repeat) for keys in stored for key, repeat in keys[place]}
        missing += [
            Missing(job, document, repeat)
            for document in job.loaded.documents
            for repeat in range(job.repeats)
            if (str(document.id), repeat) not in finished
        ]
    return missing
