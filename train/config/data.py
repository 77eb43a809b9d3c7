"""The settings of the training data, checked when they are built.

Fields that are declared with ``compare=False`` may change when a run resumes. What they lead to is judged instead: the
content of the files, the forms of the rows, the shares of the sources and the order of the documents make up the
identity of the data (``train.data.pipeline``). A row that one policy leaves out would have stopped the run under the
other.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

import tyro

from train.config.vision import VisionDataConfig
from train.data.convert import Convert, check_convert
from train.data.forms import NAMES, FormName
from train.objectives.checks import check_finite

_POLICIES = ("drop", "error")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which files of a source are read, and how their rows become conversations."""

    form: FormName | None = field(default=None, compare=False)
    """The form of the rows (docs/data.md shows them). None finds it by the keys of the rows."""

    convert: Convert | None = field(default=None, compare=False)
    """A function of the run file that takes a row of the file and returns a row of one of the forms, or None to leave
    it out. It is called from several threads."""

    split: str | None = field(default=None, compare=False)
    """Which split of a folder or hub dataset to read: ``train`` if none is named."""

    subset: str | None = field(default=None, compare=False)
    """Which of several configurations of a folder or hub dataset to read, such as a language."""

    hub_files: str | None = field(default=None, compare=False)
    """Which files of a folder or hub dataset to read, in place of a split: a pattern for their path without the ending;
    ``*`` matches ``/`` too."""

    def _check_reading(self, setting: str) -> None:
        if self.form is not None and self.form not in NAMES:
            raise ValueError(f"{setting}.form={self.form!r} is unknown; choose one of {', '.join(NAMES)}.")
        if self.convert is not None:
            check_convert(self.convert, f"{setting}.convert")
            if self.form is not None:
                raise ValueError(
                    f"{setting}.form={self.form!r} and {setting}.convert: give one; the form of what the function "
                    "returns is told by its keys."
                )
        if self.hub_files is not None and (self.split or self.subset):
            raise ValueError(
                f"{setting}.hub_files={self.hub_files!r} chooses files by their names, and {setting}.split and "
                f"{setting}.subset choose them as the dataset's card says; give one or the other."
            )


@dataclass(frozen=True)
class Source(Reading):
    """One source of a mixture."""

    path: str
    """A file, a glob (``data/*.jsonl``), a folder, each also in a bucket (``gs://``), or a dataset on the hub:
    ``org/name`` or ``org/name@revision``."""

    weight: float = 1.0
    """How many documents (not tokens) are drawn from here, relative to the weights of the other sources."""

    def __post_init__(self) -> None:
        self._check_reading("data.sources")
        if not self.path:
            raise ValueError("a path of data.sources is empty; give a file, a glob, a folder, or a hub dataset.")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"the weight {self.weight} of {self.path!r} in data.sources must be a positive number; "
                "remove the source if nothing shall be drawn from it."
            )


@dataclass(frozen=True)
class DataConfig(Reading):
    """Where conversations come from, which of their tokens are trained, and how they become batches.

    Give ``path``, or ``sources`` for a mixture. docs/data.md shows the rows and files that are read.
    """

    path: str | None = field(default=None, compare=False)
    """A file, a glob (``data/*.jsonl``), a folder, each also in a bucket (``gs://``), or a dataset on the hub:
    ``org/name`` or ``org/name@revision``. It takes the place of ``sources``, so that ``--data.path`` works with every
    run file."""

    sequence_length: int = 4096
    """Tokens in one packed sequence."""

    sequences_per_batch: Annotated[int, tyro.conf.arg(aliases=("--data.rows-per-batch",))] = 8
    """Packed sequences in one batch, over all devices and processes."""

    sources: tuple[Source, ...] = field(default=(), compare=False)
    """Several sources, mixed document by document as their weights say."""

    seed: int = 0
    """Seeds the order of the documents; every pass over a source has its own order."""

    epochs: int | None = field(default=None, compare=False)
    """Epochs to train, which decide the number of steps unless ``--steps`` is given; None repeats for ever. An epoch
    ends once every source has been read in full. Small sources with high weights may repeat, reshuffled each time."""

    shards: int = 1
    """Data shards, which are streams that the documents are dealt to. Each fills its own share of a batch. With as many
    as there are processes, each process reads and tokenises its share only; with 1, every process tokenises everything.
    The number decides which documents share a sequence, so it stays the same when a run resumes with other
    processes."""

    train_on: Literal["all", "last", "each"] = "all"
    """Which assistant turns are trained: ``all`` of a conversation, in one document; the ``last`` one; or ``each`` as
    it is when the model is used, behind the history as it is rendered then and with its own reasoning. Under ``all``
    and ``last`` the reasoning of turns before the user's last question is lost."""

    train_on_thinking: bool = True
    """Whether the words between ``<think>`` and ``</think>`` are trained along with the answer."""

    long_rows: Literal["drop", "error"] = field(default="drop", compare=False)
    """What to do with a conversation longer than ``sequence_length``: leave it out and count it, or stop."""

    bad_rows: Literal["drop", "error"] = field(default="error", compare=False)
    """What to do with a row that cannot be used: leave it out and count it by reason, or stop."""

    max_lost: float = field(default=0.05, compare=False)
    """Largest share of the documents that may be left out. The start of a run judges it from up to 2,048 of them."""

    open_sequences: Annotated[int, tyro.conf.arg(aliases=("--data.open-rows",))] = 16
    """How many unfinished sequences the packer of a data shard fills at the same time. With more of them less space is
    wasted, and documents are mixed further."""

    num_threads: int = field(default=4, compare=False)
    """Threads that read, render and tokenise ahead of training."""

    vision: VisionDataConfig | None = None
    """Images and videos of the conversations; None refuses rows that hold some."""

    eval_path: str | None = field(default=None, compare=False)
    """Validation data, given like ``path``. Of a hub dataset its split ``validation`` is read, or ``eval_split``."""

    eval_split: str | None = field(default=None, compare=False)
    """Split of a hub dataset to validate on: of ``eval_path``, or of ``path`` where that is not given."""

    eval_fraction: float | None = None
    """Share of the training rows to hold out and to validate on. They never train; ``seed`` decides which they are."""

    eval_batches: int | None = field(default=None, compare=False)
    """Most batches of validation data, from their start; None for all of them."""

    def __post_init__(self) -> None:
        check_finite(self, "data.")
        self._check_reading("data")
        if not self.path and not self.sources:
            raise ValueError("--data.path is empty; give a file, a glob, a folder, or the id of a hub dataset.")
        about_path = ("form", "convert", "split", "subset")
        if not self.path and (given := [name for name in about_path if getattr(self, name) is not None]):
            raise ValueError(
                f"data.{given[0]} is about data.path, which is not given; write it into the sources it is meant for."
            )
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
        if not 0 <= self.max_lost <= 1:
            raise ValueError(f"data.max_lost={self.max_lost} is not a share; give a number from 0 to 1.")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"data.epochs={self.epochs} is too small; give 1 or more, or None to repeat for ever.")
        for name, allowed in (("train_on", ("all", "last", "each")), ("long_rows", _POLICIES), ("bad_rows", _POLICIES)):
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
        if not self.path:
            return self.sources
        return (Source(self.path, **{each.name: getattr(self, each.name) for each in fields(Reading)}),)
