"""Follows the evaluations of a run: which step is the best, and whether it is worth going on."""

import math
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from qwen35_jax.best import Goal, choose_best
from qwen35_jax.distributed import gather, raise_together
from train.checkpoint import Checkpoints
from train.config import EarlyStopConfig, Options, TrainConfig
from train.observe.metrics import METRICS, Entry, read_entries


class Best:
    """What the figures of the evaluations so far mean. It depends on them alone, so that a resumed run decides alike.

    Args:
      past: the entries of the steps before, which a run that resumes has read.
      saved: the steps before that can be restored; no other can be the best.
    """

    def __init__(
        self,
        goal: Goal,
        early_stop: EarlyStopConfig,
        past: Iterable[Mapping[str, float | int | None]] = (),
        saved: Container[int] = (),
    ):
        self.goal, self._early_stop = goal, early_stop
        self.scores: dict[int, float] = {}
        """Of evaluated steps, of which the best is saved; lower is better."""
        self.waited = 0
        """Evaluations since the last one that was better by ``min_delta``."""
        self._reference = math.inf
        for entry in past:
            if goal.metric in entry:
                self._take(int(entry["step"] or 0), entry[goal.metric])
        self.scores = {step: score for step, score in self.scores.items() if step in saved}

    def add(self, step: int, figures: Mapping[str, float | int | None]) -> bool:
        """Takes the figures of an evaluation and returns whether the step is the best so far; it must be saved then.

        Raises:
          ValueError: the figure that decides is not among them.
        """
        if self.goal.metric not in figures:
            names = ", ".join(name for name in figures if not name.endswith("seconds"))
            raise ValueError(
                f"checkpoint.best_by names {self.goal.metric}, but the evaluation after step {step} gave {names}; "
                "choose one of these."
            )
        # That of process 0, so that all processes decide alike whatever a function of the run file returns in each.
        return self._take(step, gather(figures[self.goal.metric])[0])

    @property
    def step(self) -> int | None:
        """The best step; None if no evaluation gave a finite figure."""
        return choose_best(self.scores, self.scores)

    @property
    def is_exhausted(self) -> bool:
        """Whether the patience with the run is over."""
        return self._early_stop.patience is not None and self.waited >= self._early_stop.patience

    def __str__(self) -> str:
        if self.step is None:
            return f"no step has a finite {self.goal.metric}"
        return f"step {self.step} is the best, with {self.goal.metric} {self.value:.6g}"

    @property
    def value(self) -> float:
        """The figure of the best step, which must exist."""
        assert self.step is not None
        return self.goal.score(self.scores[self.step])

    def _take(self, step: int, value: float | None) -> bool:
        score = self.goal.score(value)
        is_best = score < min(self.scores.values(), default=math.inf)
        if score < math.inf:
            self.scores[step] = score
        if score < self._reference and score <= self._reference - self._early_stop.min_delta:
            self._reference, self.waited = score, 0
        else:
            self.waited += 1
        return is_best


def follow_best(options: Options, workdir: Path, checkpoints: Checkpoints, done: int | None) -> Best | None:
    """Takes up what the evaluations of a run directory say, and lets ``checkpoints`` keep the best step.

    Args:
      done: the step that the run goes on from, if there is one.
    """
    if options.checkpoint.best_by is None:
        return None
    goal = Goal.parse(options.checkpoint.best_by)
    past: list[Entry] = []
    saved: list[int] = []
    with raise_together():
        if done is not None and jax.process_index() == 0:
            entries = [entry for entry in read_entries(workdir / METRICS) if int(entry["step"] or 0) <= done]
            names = ("step", goal.metric)
            past = [{name: entry[name] for name in names} for entry in entries if goal.metric in entry]
            saved = checkpoints.whole_steps()
    past, saved = gather([past, saved])[0]
    best = Best(goal, options.early_stop, past, saved)
    checkpoints.scores = best.scores
    return best


def make_outcome(config: TrainConfig, last_step: int, best: Best | None) -> dict[str, Any]:
    """Says how a run ended, for its record."""
    outcome: dict[str, Any] = {"last_step": last_step}
    if best is not None and best.step is not None:
        outcome["best"] = {"step": best.step, best.goal.metric: best.value}
        outcome["stopped_early"] = best.is_exhausted and last_step < config.recipe.num_steps
    return outcome
