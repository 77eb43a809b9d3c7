"""How a run is operated: what changes none of its numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from qwen35_jax.best import Goal
from qwen35_jax.distributed import ProcessConfig
from qwen35_jax.gcs import check_scheme
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.wording import did_you_mean
from train.objectives.checks import check_finite
from train.observe.trackers import TRACKERS, Tracker, Trackers


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved. The last step always is, and the one after which SIGTERM ends the run."""

    every: int = 100
    """Steps between checkpoints."""
    keep: int = 2
    """How many of the newest are kept; with 2, a damaged one has a predecessor to fall back on."""
    keep_every: int | None = None
    """Checkpoints of steps that this number divides are kept for ever."""
    best_by: str | None = None
    """The figure that says which step is best: ``eval_loss``, which is minimised, or ``max:eval_accuracy``. After every
    evaluation that is the best so far, the step is saved; the best is kept beside the newest."""

    def __post_init__(self):
        if self.every < 1 or self.keep < 1:
            raise ValueError(f"checkpoint.every={self.every} and checkpoint.keep={self.keep} must be at least 1.")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.every):
            raise ValueError(
                f"checkpoint.keep_every={self.keep_every} must be a multiple of checkpoint.every={self.every}, since "
                "other steps are not saved."
            )
        if self.best_by is not None:
            Goal.parse(self.best_by)


@dataclass(frozen=True)
class EarlyStopConfig:
    """When a run ends before its last step, judged by the figure of ``checkpoint.best_by``."""

    patience: int | None = None
    """Stop after so many evaluations in a row that are no better than the best before them."""
    min_delta: float = 0.0
    """By how much an evaluation must be better to count as better."""

    def __post_init__(self):
        check_finite(self, "early_stop.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"early_stop.patience={self.patience} must be at least 1; None never stops early.")
        if self.min_delta < 0:
            raise ValueError(f"early_stop.min_delta={self.min_delta} must be 0 or more.")


@dataclass(frozen=True)
class SamplesConfig:
    """Answers that the model in training writes, for people to read. They take the most likely tokens."""

    every: int | None = None
    """Steps between samples; there are some after the last step too. None for no samples."""
    path: str | None = None
    """A JSONL file, also of a bucket (``gs://``), of conversations that end with the turn to be answered, as ``qwen35
    generate`` takes it. By default the first conversations of the validation data, without their last answers."""
    count: int = 4
    """How many of them are answered."""
    max_new_tokens: int = 256
    """Most tokens of one answer."""
    mode: Literal["default", "thinking", "non_thinking"] = "default"
    """Whether the model reasons first; ``default``: as its chat template decides."""

    def __post_init__(self):
        for name in ("every", "count", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"samples.{name}={value} must be at least 1.")
        if self.every is None and self.path is not None:
            raise ValueError(f"samples.path={self.path!r} is never used; say how often with --samples.every N.")


@dataclass(frozen=True)
class Options:
    """What changes no number of a run: a run may resume with any options."""

    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stop: EarlyStopConfig = EarlyStopConfig()
    processes: ProcessConfig = field(default_factory=ProcessConfig)
    evaluate: Callable[[Qwen35, Tokenizer], Mapping[str, float]] | None = None
    """Called with the model at every evaluation, by all processes, from the run file only; the figures it returns
    stand in that step's metrics. It must not keep the model, whose arrays the next step consumes."""
    evaluate_every: Annotated[int | None, tyro.conf.arg(aliases=("--eval-every",))] = None
    """Steps between evaluations, which are the losses of the validation data (``data.eval_path`` and its like) and
    ``evaluate`` of the run file. By default as many as between checkpoints; there is always one after the last step."""
    samples: SamplesConfig = SamplesConfig()
    report_to: tuple[str, ...] | None = None
    """Where metrics go besides ``metrics.jsonl``: ``tensorboard``, ``wandb``, ``trackio``, or ``none``. By default
    TensorBoard where it is installed."""
    trackers: Annotated[tuple[Callable[[], Tracker], ...], tyro.conf.Suppress] = ()
    """Trackers of the run file: functions, or classes, that make an object with the methods of ``Tracker``."""
    profile: str | None = None
    """``FIRST:LAST``: writes a trace of these steps, both included, into ``profile/`` (for XProf or Perfetto)."""
    export: bool = True
    """Write ``export/`` at the end: a Hugging Face folder, or the PEFT adapter."""
    export_best: bool = False
    """Export the best step by ``checkpoint.best_by`` rather than the last."""
    workdir: str | None = None
    """Where everything of the run is written; by default ``runs/`` and the name of the run file. On several hosts it
    lies in a bucket (``gs://bucket/name``), or on a disk or a mounted bucket that all of them see under this path."""
    plan: str | None = None
    """Train nothing; print what the run needs on these TPUs, such as ``v5e:2x4``."""
    plan_json: str | None = None
    """A new file for the plan as JSON."""
    plan_price: float | None = None
    """Price of a chip for an hour, for the plan."""

    def __post_init__(self):
        check_finite(self)
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every={self.evaluate_every} must be at least 1.")
        for name, wanted in (
            ("early_stop.patience", self.early_stop.patience is not None),
            ("export_best", self.export_best),
        ):
            if wanted and self.checkpoint.best_by is None:
                raise ValueError(
                    f"{name} needs to know what is best; give the figure, such as --checkpoint.best-by eval_loss."
                )
        self._check_report_to()
        if self.profile is not None:
            parse_steps(self.profile)
        if self.workdir is not None:
            check_scheme(self.workdir)
        if self.plan is None and (self.plan_json, self.plan_price) != (None, None):
            raise ValueError("plan_json and plan_price belong to a plan; name its TPUs with --plan, such as v5e:2x4.")

        if self.plan_price is not None and self.plan_price < 0:
            raise ValueError(f"plan_price={self.plan_price} is negative; give what a chip costs for an hour.")

    def _check_report_to(self) -> None:
        names = self.report_to or ()
        if unknown := [name for name in names if name not in (*TRACKERS, "none")]:
            raise ValueError(
                f"--report-to {unknown[0]} is unknown; choose from {', '.join(TRACKERS)}, or none."
                f"{did_you_mean(unknown[0], TRACKERS)}"
            )
        if "none" in names and len(names) > 1:
            raise ValueError("--report-to none stands alone; leave out either it or the others.")

    def make_trackers(self) -> Trackers:
        """Makes the trackers of these settings.

        Raises:
          ValueError: what one of them needs is not installed.
        """
        return Trackers(() if self.report_to == ("none",) else self.report_to, self.trackers)


def parse_steps(steps: str) -> range:
    """Returns the steps of ``FIRST:LAST``, both included.

    Raises:
      ValueError: not two numbers in this order, from 1.
    """
    first, _, last = steps.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"profile={steps!r} names no steps; give FIRST:LAST, such as 10:12.")
    return range(int(first), int(last) + 1)
