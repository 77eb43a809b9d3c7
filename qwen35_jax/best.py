"""Which step of a run is the best, by a figure of its evaluations."""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

METRICS = "metrics.jsonl"
PREFIX = "eval_"
"""What the names of an evaluation's figures begin with."""


class Goal(NamedTuple):
    """A figure, and which way it gets better."""

    metric: str
    maximise: bool

    @classmethod
    def parse(cls, text: str) -> "Goal":
        """Reads ``eval_loss``, which is minimised, or ``max:eval_accuracy``.

        Raises:
          ValueError: not the name of an evaluation's figure.
        """
        direction, _, metric = text.rpartition(":")
        if direction not in ("", "min", "max") or not metric.startswith(PREFIX) or metric == PREFIX:
            raise ValueError(
                f"checkpoint.best_by={text!r} names no figure of an evaluation; give a name that begins with {PREFIX}, "
                "such as eval_loss, which is minimised, or max:eval_accuracy."
            )
        return cls(metric, direction == "max")

    def score(self, value: float | None) -> float:
        """Returns the figure so that lower is better; infinity for null, which stands for what is not finite."""
        if value is None or not math.isfinite(value):
            return math.inf
        return -value if self.maximise else value


def choose_best(scores: Mapping[int, float], steps: Iterable[int]) -> int | None:
    """Returns the step of the lowest score, the earliest of equals, or None if none of the steps has a score."""
    return min((step for step in steps if step in scores), key=lambda step: (scores[step], step), default=None)


def best_step(run_dir: Path, record: Mapping[str, Any], steps: Iterable[int], *, name: str | None = None) -> int:
    """Returns the best of the saved steps of a run.

    Args:
      run_dir: holds its metrics.
      record: the run record, whose options say what is best.
      name: what errors call the run, if not by its directory.

    Raises:
      ValueError: the run did not look for the best step, or none of these steps was evaluated.
    """
    name = name or str(run_dir)
    best_by = record.get("options", {}).get("checkpoint", {}).get("best_by")
    if best_by is None:
        raise ValueError(
            f"{name} was trained without checkpoint.best_by, so none of its steps is the best; give --step N."
        )
    goal, path = Goal.parse(best_by), run_dir / METRICS
    best = choose_best(read_scores(path, goal), steps)
    if best is None:
        raise ValueError(f"no checkpoint of {name} has {goal.metric} in {path.name}; give --step N.")
    return best


def read_scores(path: Path, goal: Goal) -> dict[int, float]:
    """Returns the score of every step that was evaluated."""
    return {entry["step"]: goal.score(entry[goal.metric]) for entry in finished_entries(path) if goal.metric in entry}


def finished_entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the entries of ``metrics.jsonl``; unfinished lines are passed over, an absent file has none."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry
