"""How a run is operated: what changes none of its numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from qwen35_jax.distributed import ProcessConfig
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.tokenizer import Tokenizer


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved. The last step always is, and the one after which SIGTERM ends the run."""

    every: int = 100
    """Steps between checkpoints."""
    keep: int = 2
    """How many are kept; with 2, a damaged one has a predecessor to fall back on."""

    def __post_init__(self):
        if self.every < 1 or self.keep < 1:
            raise ValueError(f"checkpoint.every={self.every} and checkpoint.keep={self.keep} must be at least 1.")


@dataclass(frozen=True)
class Options:
    """What changes no number of a run: a run may resume with any options."""

    checkpoint: CheckpointConfig = CheckpointConfig()
    processes: ProcessConfig = field(default_factory=ProcessConfig)
    evaluate: Callable[[Qwen35, Tokenizer], Mapping[str, float]] | None = None
    """Called with the model at every evaluation, by all processes, from the run file only; the figures it returns
    stand in that step's metrics. It must not keep the model, whose arrays the next step consumes."""
    evaluate_every: Annotated[int | None, tyro.conf.arg(aliases=("--eval-every",))] = None
    """Steps between evaluations, which are the losses of the validation data (``data.eval_path`` and its like) and
    ``evaluate`` of the run file. By default as many as between checkpoints; there is always one after the last step."""
    profile: str | None = None
    """``FIRST:LAST``: writes a trace of these steps, both included, into ``profile/`` (for XProf or Perfetto)."""
    export: bool = True
    """Write ``export/`` at the end: a Hugging Face folder, or the PEFT adapter."""
    workdir: str | None = None
    """Where everything of the run is written; by default ``runs/`` and the name of the run file. On several hosts it
    lies on a disk, or a mounted bucket, that all of them see under this path."""
    plan: str | None = None
    """Train nothing; print what the run needs on these TPUs, such as ``v5e:2x4``."""
    plan_json: str | None = None
    """A new file for the plan as JSON."""
    plan_price: float | None = None
    """Price of a chip for an hour, for the plan."""

    def __post_init__(self):
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every={self.evaluate_every} must be at least 1.")
        if self.profile is not None:
            parse_steps(self.profile)
        if self.workdir is not None and "://" in self.workdir:
            raise ValueError(
                f"workdir={self.workdir!r} is an address, but a path is needed; mount the bucket (Cloud Storage FUSE) "
                "and give the path of the mount."
            )
        if self.plan is None and (self.plan_json, self.plan_price) != (None, None):
            raise ValueError("plan_json and plan_price belong to a plan; name its TPUs with --plan, such as v5e:2x4.")


def parse_steps(steps: str) -> range:
    """Returns the steps of ``FIRST:LAST``, both included.

    Raises:
      ValueError: not two numbers in this order, from 1.
    """
    first, _, last = steps.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"profile={steps!r} names no steps; give FIRST:LAST, such as 10:12.")
    return range(int(first), int(last) + 1)
