"""Reads evaluation directories to be compared, and puts the samples of the same documents side by side."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.samples import Sample, samples_path
from eval.tasks.base import CUT
from eval.trials import Trials, trials_of
from qwen35_jax import gcs
from qwen35_jax.wording import reason_of, type_of

_NEEDED = ("id", "metrics", "outcome")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished evaluation directory.

    Attributes:
      directory: as it was given.
      config: what config.json holds.
      results: what results.json holds.
    """

    directory: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """Returns a setting of the run; None where it has none of that name."""
        return self.results.get(name, self.config.get(name))

    def digest(self, task: str) -> str | None:
        """Returns the SHA-256 of a task's documents."""
        return self.results["tasks"][task].get("data_sha256")


@dataclasses.dataclass(frozen=True)
class Pair:
    """The samples of A and B to the documents that both have.

    Attributes:
      ids: of the documents, in the order of A.
      metrics: the trials of A and of B by metric, for metrics that both have.
      cut: the share of the samples of A and of B that were cut off; None where no sample says how it ended.
      left_out: how many documents only one has, or have another right answer in B.
    """

    ids: list[str]
    metrics: Mapping[str, tuple[Trials, Trials]]
    cut: tuple[float | None, float | None]
    left_out: int


def open_run(directory: str) -> Run:
    """Reads what an evaluation directory says of itself. Nothing in it is changed.

    Raises:
      ValueError: it is no evaluation directory, it is not finished, or a file is damaged.
    """
    gcs.check_is_path(directory)
    path = Path(directory)
    if not path.is_dir():
        raise ValueError(f"{directory} is not a folder; give the --out of a finished eval.run or eval.score.")
    for name in ("config.json", "results.json"):
        if not (path / name).is_file():
            raise ValueError(f"{directory} holds no {name}; run eval.run or eval.score into it to its end.")
    run = Run(directory, _read_json(path / "config.json"), _read_json(path / "results.json"))
    tasks = run.results.get("tasks")
    if not isinstance(tasks, dict) or not tasks or not all("data_sha256" in each for each in tasks.values()):
        raise ValueError(
            f"{path / 'results.json'} does not say which documents it is about; run the same eval.run or eval.score "
            "into it again, which writes it anew from the samples."
        )
    return run


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ValueError(f"cannot read {path}: {reason_of(err)}.") from err
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type_of(content)}, expected a JSON object.")
    return content


def shared_tasks(a: Run, b: Run, *, common: bool = False) -> list[str]:
    """Returns the tasks that two runs can be compared on.

    Args:
      common: whether runs that do not fit are compared on what they share.

    Raises:
      ValueError: they are the same directory, share no task, or differ in tasks, protocol, limit, split or documents.
    """
    if Path(a.directory).resolve() == Path(b.directory).resolve():
        raise ValueError(f"{a.directory} and {b.directory} are the same directory; give two runs.")
    names_a, names_b = (list(run.results["tasks"]) for run in (a, b))
    shared = [name for name in names_a if name in names_b]
    if not shared:
        raise ValueError(
            f"{a.directory} has the tasks {', '.join(names_a)} and {b.directory} {', '.join(names_b)}; give two runs "
            "of one task."
        )
    if not common and (different := _difference(a, b, shared)):
        name, of_a, of_b = different
        raise ValueError(
            f"{a.directory} and {b.directory} do not fit: {name} is {of_a} and {of_b}; run both alike, or give "
            "--common to compare the documents that both have."
        )
    return shared


def _difference(a: Run, b: Run, shared: list[str]) -> tuple[str, Any, Any] | None:
    """Returns the first thing in which two runs do not fit, and what it is in each."""
    names_a, names_b = (sorted(run.results["tasks"]) for run in (a, b))
    if names_a != names_b:
        return "the list of tasks", ", ".join(names_a), ", ".join(names_b)
    for name in ("protocol", "limit", "split"):
        if a.get(name) != b.get(name):
            return name, a.get(name), b.get(name)
    for task in shared:
        if a.digest(task) != b.digest(task):
            return f"the data of {task}", f"{a.digest(task)}"[:12], f"{b.digest(task)}"[:12]
    return None


def check_noise(a: Run, other: Run) -> None:
    """Checks that a run differs from A in nothing but its seed.

    Raises:
      ValueError: it differs in something else, or not in its seed.
    """
    names = ("model", "adapter", "weights", "mode", "style", "protocol", "thinking_budget", "repeats")
    settings = [(name, a.get(name), other.get(name)) for name in names]
    for task in a.results["tasks"].keys() & other.results["tasks"].keys():
        of_a, of_other = a.results["tasks"][task], other.results["tasks"][task]
        settings += [(f"{task} {name}", of_a.get(name), of_other.get(name)) for name in ("sampling", "max_new_tokens")]
    # A copy of the same weights may lie elsewhere.
    if a.get("weights") is not None and a.get("weights") == other.get("weights"):
        settings = [each for each in settings if each[0] not in ("model", "adapter")]
    for name, of_a, of_other in settings:
        if of_a != of_other:
            raise ValueError(
                f"--noise {other.directory}: {name} is {of_other}, in {a.directory} {of_a}; give a run of the same "
                "model and settings with another seed."
            )
    if a.get("seed") is not None and a.get("seed") == other.get("seed"):
        raise ValueError(
            f"--noise {other.directory}: its seed is {other.get('seed')}, that of {a.directory} too; give a run with "
            "another seed."
        )


def pair(a: Run, b: Run, task: str, *, common: bool = False) -> Pair:
    """Reads the samples of a task and keeps those to documents that both runs have.

    Args:
      common: leave out documents that only one has, or that have another right answer in each.

    Raises:
      ValueError: a file is damaged or incomplete, the runs have no document in common, or, without ``common``, not all.
    """
    of_a, of_b = _read(a, task), _read(b, task)
    targets = {each["id"]: each.get("target") for each in of_b}
    known = list(dict.fromkeys(each["id"] for each in of_a))
    own = {each["id"]: each.get("target") for each in of_a}
    ids = [name for name in known if name in targets and targets[name] == own[name]]
    left_out = len(own.keys() | targets.keys()) - len(ids)
    if not ids:
        raise ValueError(f"{a.directory} and {b.directory} have no document of {task} in common.")
    if left_out and not common:
        first = sorted((own.keys() | targets.keys()) - set(ids))[0]
        raise ValueError(
            f"{a.directory} and {b.directory} do not fit: {left_out} documents of {task} are not the same in both "
            f"(first {first}); give --common to compare the others."
        )
    numbers = {name: number for number, name in enumerate(ids)}
    kept = [[each for each in samples if each["id"] in numbers] for samples in (of_a, of_b)]
    trials = [trials_of(samples, dict(numbers)) for samples in kept]
    metrics = {name: (each, trials[1][name]) for name, each in trials[0].items() if name in trials[1]}
    return Pair(ids, metrics, (_share_cut(a, task, kept[0]), _share_cut(b, task, kept[1])), left_out)


def _share_cut(run: Run, task: str, samples: Sequence[Sample]) -> float | None:
    summary = run.results["tasks"][task]
    # Choices that are compared are not written, so that none is cut.
    if run.get("style") != "likelihood" and summary["cut"]["unknown"] == summary["samples"]:
        return None
    return float(np.mean([each["outcome"] in CUT for each in samples]))


def _read(run: Run, task: str) -> list[dict[str, Any]]:
    """Reads what a comparison needs of each sample; texts and tokens are not kept."""
    path = samples_path(Path(run.directory), task)
    if not path.is_file():
        raise ValueError(f"{path} is missing; run eval.run or eval.score into {run.directory} to its end.")
    samples = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                sample = json.loads(line)
                needed = {name: sample[name] for name in _NEEDED}
            except (ValueError, KeyError, TypeError) as err:
                raise ValueError(f"{path}:{number}: not a stored sample ({err}); run the evaluation again.") from err
            kept = {name: sample.get(name) for name in ("target", "circle", "correct")}
            samples.append(needed | kept | {"id": str(sample["id"]), "repeat": sample.get("repeat", 0)})
    wanted = run.results["tasks"][task].get("samples")
    if len(samples) != wanted:
        raise ValueError(f"{path} holds {len(samples)} samples, results.json tells of {wanted}; run it to its end.")
    return samples
