"""The settings of the training data, checked when they are built."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """One part of a mixture."""

    path: str
    """A file, a glob (``data/*.jsonl``), or a dataset on the hub: ``org/name`` or ``org/name@revision``."""

    weight: float = 1.0
    """How many documents (not tokens) are drawn from here, relative to the weights of the other sources."""

    hub_files: str = "*train*"
    """Which files of a hub dataset to read: a pattern for their path without the ending; ``*`` matches ``/`` too."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("a path of data.sources is empty; give a JSONL or Parquet file, a glob, or a hub dataset.")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"the weight {self.weight} of {self.path!r} in data.sources must be a positive number; "
                "remove the source if nothing shall be drawn from it."
            )


@dataclass(frozen=True)
class DataConfig:
    """Where conversations come from, what of them is trained, and how they become batches.

    Rows are ``{"messages": [...], "tools"?: [...]}`` or ``{"text": ...}``, in JSONL or Parquet. Give ``path``, or
    ``sources`` for a mixture.
    """

    path: str | None = None
    """A file, a glob (``data/*.jsonl``), or a dataset on the hub: ``org/name`` or ``org/name@revision``. Where it is
    given it takes the place of ``sources``, so that ``--data.path`` works with every run file."""

    sequence_length: int = 4096
    """Tokens in one packed row."""

    rows_per_batch: int = 8
    """Packed rows in one batch, over all devices and processes."""

    sources: tuple[Source, ...] = ()
    """Several sources, mixed document by document as their weights say."""

    seed: int = 0
    """Seeds the order of the documents; every pass over a source has its own order."""

    epochs: int | None = None
    """Passes over the data; None repeats for ever, and the trainer's number of steps decides. An epoch of a mixture
    ends when every source was passed at least once; those short for their weight repeat meanwhile."""

    shards: int = 1
    """Streams that the documents are dealt to, each of which fills its own part of a batch's rows. With as many as
    there are processes, each process reads and tokenises its part only; with 1, every process tokenises everything.
    It decides which documents share a row, so it stays the same when a run resumes with other processes."""

    train_on: Literal["all", "last"] = "all"
    """Which assistant turns are trained: all of a conversation, or the last one."""

    train_on_thinking: bool = True
    """Whether the words between ``<think>`` and ``</think>`` are trained along with the answer."""

    long_rows: Literal["drop", "error"] = "drop"
    """What to do with a conversation longer than ``sequence_length``: leave it out and count it, or stop."""

    bad_rows: Literal["drop", "error"] = "error"
    """What to do with a row that cannot be used: leave it out and count it by reason, or stop."""

    open_rows: int = 16
    """How many unfinished rows a shard's packer fills at the same time; more waste less and mix documents further."""

    num_threads: int = 4
    """Threads that read, render and tokenise ahead of training."""

    hub_files: str = "*train*"
    """Which files of a hub dataset at ``path`` to read, as in `Source`."""

    def __post_init__(self) -> None:
        if not self.path and not self.sources:
            raise ValueError("data.path is empty; give a JSONL or Parquet file, a glob, or a hub dataset id.")
        paths = [source.path for source in self.sources]
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise ValueError(f"data.sources names {twice[0]!r} twice; name it once and add the weights.")
        least_values = {"sequence_length": 2, "rows_per_batch": 1, "shards": 1, "open_rows": 1, "num_threads": 1}
        for name, least in least_values.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"data.{name}={value} is too small; it must be at least {least}.")
        if self.rows_per_batch % self.shards:
            raise ValueError(
                f"data.rows_per_batch={self.rows_per_batch} cannot be dealt to data.shards={self.shards}; "
                f"make it a multiple of {self.shards}."
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"data.seed={self.seed} is out of range; it must be in [0, 2**32).")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"data.epochs={self.epochs} is too small; give 1 or more, or None to repeat for ever.")
        for name, allowed in (("train_on", ("all", "last")), ("long_rows", _POLICIES), ("bad_rows", _POLICIES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"data.{name}={value!r} is unknown; choose one of {', '.join(allowed)}.")

    @property
    def mixture(self) -> tuple[Source, ...]:
        """What is read: ``path`` alone, or ``sources``."""
        return (Source(self.path, hub_files=self.hub_files),) if self.path else self.sources


_POLICIES = ("drop", "error")
