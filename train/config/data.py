"""The settings of the training data, checked when they are built.

Fields that are declared with ``compare=False`` may change when a run resumes. What they lead to is judged instead: the
content of the files, the shares of the sources and the order of the documents make up the identity of the data
(``train.data.pipeline``). A row that one policy leaves out would have stopped the run under the other.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

_POLICIES = ("drop", "error")


@dataclass(frozen=True)
class Source:
    """One source of a mixture."""

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
    """Where conversations come from, which of their tokens are trained, and how they become batches.

    Rows are ``{"messages": [...], "tools"?: [...]}`` or ``{"text": ...}``, in JSONL or Parquet. Give ``path``, or
    ``sources`` for a mixture.
    """

    path: str | None = field(default=None, compare=False)
    """A file, a glob (``data/*.jsonl``), or a dataset on the hub: ``org/name`` or ``org/name@revision``. It takes the
    place of ``sources``, so that ``--data.path`` works with every run file."""

    sequence_length: int = 4096
    """Tokens in one packed sequence."""

    sequences_per_batch: Annotated[int, tyro.conf.arg(aliases=("--data.rows-per-batch",))] = 8
    """Packed sequences in one batch, over all devices and processes."""

    sources: tuple[Source, ...] = field(default=(), compare=False)
    """Several sources, mixed document by document as their weights say."""

    seed: int = 0
    """Seeds the order of the documents; every pass over a source has its own order."""

    epochs: int | None = field(default=None, compare=False)
    """Epochs to train; None repeats for ever, and the number of steps decides. An epoch ends once every source has
    been read in full. Small sources with high weights may repeat, reshuffled each time."""

    shards: int = 1
    """Data shards, which are streams that the documents are dealt to. Each fills its own share of a batch. With as many
    as there are processes, each process reads and tokenises its share only; with 1, every process tokenises everything.
    The number decides which documents share a sequence, so it stays the same when a run resumes with other
    processes."""

    train_on: Literal["all", "last"] = "all"
    """Which assistant turns are trained: all of a conversation, or the last one."""

    train_on_thinking: bool = True
    """Whether the words between ``<think>`` and ``</think>`` are trained along with the answer."""

    long_rows: Literal["drop", "error"] = field(default="drop", compare=False)
    """What to do with a conversation longer than ``sequence_length``: leave it out and count it, or stop."""

    bad_rows: Literal["drop", "error"] = field(default="error", compare=False)
    """What to do with a row that cannot be used: leave it out and count it by reason, or stop."""

    open_sequences: Annotated[int, tyro.conf.arg(aliases=("--data.open-rows",))] = 16
    """How many unfinished sequences the packer of a data shard fills at the same time. With more of them less space is
    wasted, and documents are mixed further."""

    num_threads: int = field(default=4, compare=False)
    """Threads that read, render and tokenise ahead of training."""

    hub_files: str = field(default="*train*", compare=False)
    """Which files of a hub dataset at ``path`` to read, as in `Source`."""

    eval_path: str | None = field(default=None, compare=False)
    """Validation data, given like ``path``. Of a hub dataset its split ``validation`` is read, or ``eval_split``."""

    eval_split: str | None = field(default=None, compare=False)
    """Split of a hub dataset to validate on: of ``eval_path``, or of ``path`` where that is not given."""

    eval_fraction: float | None = None
    """Share of the training rows to hold out and to validate on. They never train; ``seed`` decides which they are."""

    eval_batches: int | None = field(default=None, compare=False)
    """Most batches of validation data, from their start; None for all of them."""

    def __post_init__(self) -> None:
        if not self.path and not self.sources:
            raise ValueError("data.path is empty; give a JSONL or Parquet file, a glob, or a hub dataset id.")
        paths = [source.path for source in self.sources]
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise ValueError(f"data.sources names {twice[0]!r} twice; name it once and add the weights.")
        least_values = {
            "sequence_length": 2, "sequences_per_batch": 1, "shards": 1, "open_sequences": 1, "num_threads": 1,
        }  # fmt: skip
        for name, least in least_values.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"data.{name}={value} is too small; it must be at least {least}.")
        if self.sequences_per_batch % self.shards:
            raise ValueError(
                f"data.sequences_per_batch={self.sequences_per_batch} cannot be dealt to data.shards={self.shards}; "
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
        self._check_validation()

    def _check_validation(self) -> None:
        given = [name for name in ("eval_path", "eval_split", "eval_fraction") if getattr(self, name) is not None]
        if self.eval_fraction is not None:
            if not 0 < self.eval_fraction < 1:
                raise ValueError(
                    f"data.eval_fraction={self.eval_fraction} is no share of the rows; give a number between 0 and 1, "
                    "such as 0.02."
                )
            if len(given) > 1:
                raise ValueError(
                    f"data.eval_fraction={self.eval_fraction} and data.{given[0]}={getattr(self, given[0])!r} both "
                    "name validation data; give one of them."
                )
        if self.eval_split is not None and self.eval_path is None and self.path is None:
            raise ValueError(
                f"data.eval_split={self.eval_split!r} is a split of data.path or data.eval_path, but neither is given; "
                "name the hub dataset with data.eval_path."
            )
        if self.eval_batches is not None and (self.eval_batches < 1 or not given):
            raise ValueError(
                f"data.eval_batches={self.eval_batches} must be at least 1, and needs data.eval_path, data.eval_split "
                "or data.eval_fraction."
            )

    @property
    def validates(self) -> bool:
        """Whether there are validation data."""
        return (self.eval_path, self.eval_split, self.eval_fraction) != (None, None, None)

    @property
    def mixture(self) -> tuple[Source, ...]:
        """What is read: ``path`` alone, or ``sources``."""
        return (Source(self.path, hub_files=self.hub_files),) if self.path else self.sources
