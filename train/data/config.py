"""The settings of the training data, checked when they are built."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Where conversations come from, what of them is trained, and how they become batches.

    Rows are ``{"messages": [...], "tools"?: [...]}`` or ``{"text": ...}``, in JSONL or Parquet.
    """

    path: str
    """A file, a glob (``data/*.jsonl``), or a dataset on the hub: ``org/name`` or ``org/name@revision``."""

    sequence_length: int
    """Tokens in one packed row."""

    rows_per_batch: int = 8
    """Packed rows in one batch, over all devices and processes."""

    seed: int = 0
    """Seeds the order of the documents; every epoch has its own order."""

    epochs: int | None = None
    """Passes over the data; None repeats for ever, and the trainer's number of steps decides."""

    train_on: Literal["all", "last"] = "all"
    """Which assistant turns are trained: all of a conversation, or the last one."""

    train_on_thinking: bool = True
    """Whether the words between ``<think>`` and ``</think>`` are trained along with the answer."""

    long_rows: Literal["drop", "error"] = "drop"
    """What to do with a conversation longer than ``sequence_length``: leave it out and count it, or stop."""

    bad_rows: Literal["drop", "error"] = "error"
    """What to do with a row that cannot be used: leave it out and count it by reason, or stop."""

    open_rows: int = 16
    """How many unfinished rows the packer fills at the same time; more waste less and mix documents further."""

    num_threads: int = 4
    """Threads that read, render and tokenise ahead of training."""

    hub_files: str = "*train*"
    """Which files of a hub dataset to read: a pattern for their path without the ending; ``*`` matches ``/`` too."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("data.path is empty; give a JSONL or Parquet file, a glob, or a hub dataset id.")
        for name, least in (("sequence_length", 2), ("rows_per_batch", 1), ("open_rows", 1), ("num_threads", 1)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"data.{name}={value} is too small; it must be at least {least}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"data.seed={self.seed} is out of range; it must be in [0, 2**32).")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"data.epochs={self.epochs} is too small; give 1 or more, or None to repeat for ever.")
        for name, allowed in (("train_on", ("all", "last")), ("long_rows", _POLICIES), ("bad_rows", _POLICIES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"data.{name}={value!r} is unknown; choose one of {', '.join(allowed)}.")


_POLICIES = ("drop", "error")
