"""Finds the documents of a run by their position, and reads, checks, renders and tokenises them when they are needed.

Before a run starts, rows are read, checked and rendered for as long as that takes seconds: a third of a millisecond a
conversation, so that half a minute is the most. A source of up to 256 MiB is checked in full.
Of a larger source as many rows are checked as 256 MiB hold, in stretches that are evenly spread over it, because it
would take an hour at every start to parse hundreds of gigabytes. Every row is checked again when its turn comes, and
the policies apply then. If a bad row stopped a run, the run goes on from its checkpoint with ``bad_rows="drop"``; this
changes nothing about the rows before.
"""

import copy
import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from qwen35_jax.hf.hub import find_files
from qwen35_jax.processing import ChatTemplateError, Tokenizer
from train.config.data import DataConfig, Source
from train.data.forms import columns_of
from train.data.masking import Example, Rendered, encode_conversations, encode_text, render_conversation
from train.data.order import Mixture, ShuffledRows, held_out_rows
from train.data.pictures import Picture
from train.data.reading import RowReader, Survey
from train.data.rows import Conversation, RowError, control_tokens
from train.data.sources import WINDOW_BYTES, RowSource
from train.data.vision import VisionReader

logger = logging.getLogger(__name__)

_CHECKED_BYTES = 1 << 28
_CHECKED_RUNS = 64

REMEDIES = {
    "too_long": "raise --data.sequence-length",
    "too_many_patches": "raise --data.vision.patches-per-sequence or lower --data.vision.max-pixels",
}
"""What helps where a document does not fit into a sequence, by reason."""

Document = list[Example | RowError]
"""What a position of the order holds: examples, several if a text was cut or each turn is a document of its own; and
for what cannot be used, why."""


class Documents:
    """Every document that a run may draw, by its position in the order. It depends on data and settings alone."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, vision: VisionReader | None = None):
        """Finds and indexes the files of every source.

        Args:
          vision: reads images and videos, where ``config.vision`` asks for them.

        Raises:
          ValueError: a source cannot be read or holds no row, or its weight is too small.
        """
        assert (vision is None) == (config.vision is None), "the settings of vision come with what reads images"
        self.config, self.vision, self._tokenizer = config, vision, tokenizer
        control = control_tokens(tokenizer)
        self._readers = [RowReader(source, control, vision=vision is not None) for source in config.mixture]
        self.sources = [_open(source) for source in config.mixture]
        self._rows = [
            ShuffledRows(*source.groups, window_bytes=WINDOW_BYTES, seed=(config.seed, number))
            for number, source in enumerate(self.sources)
        ]
        self.held_out = [
            held_out_rows(len(source), config.eval_fraction, (config.seed, number))
            for number, source in enumerate(self.sources)
        ]
        weights = [source.weight for source in config.mixture]
        self._mixture = Mixture([len(source) for source in self.sources], weights, config.seed)
        self._told: dict[str, str] = {}
        self.has_conversations = False
        """Whether a row that ``check`` accepted is a conversation, not plain text."""

    @property
    def epoch_length(self) -> int:
        """Documents in one epoch."""
        return self._mixture.epoch_length

    @property
    def names(self) -> str:
        """The settings that name the data, for messages."""
        return f"data.path={self.config.path!r}" if self.config.path else "data.sources"

    def in_batches_of(self, sequences: int) -> "Documents":
        """Returns the same documents, with settings for batches of so many sequences."""
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, sequences_per_batch=sequences)
        return other

    def load(self, positions: Sequence[int]) -> list[Document]:
        """Returns what is at each position.

        A row that is held out has none. Several positions take less time together than one by one.
        """
        places = [self.locate(position) for position in positions]
        trained = [(source, row) for source, row in places if row not in self.held_out[source]]
        documents = iter(self.load_rows(trained))
        return [[] if row in self.held_out[source] else next(documents) for source, row in places]

    def load_rows(self, places: Sequence[tuple[int, int]]) -> list[Document]:
        """Does what `load` does for rows by their source and number, held out or not."""
        prepared = [self._prepare(source, row) for source, row in places]
        texts = [text for document in prepared for text in document if isinstance(text, Rendered)]
        examples = iter(encode_conversations(self._tokenizer, texts))
        return [
            [self._finish(next(examples), each.pictures) if isinstance(each, Rendered) else each for each in document]
            for document in prepared
        ]

    def where(self, position: int) -> str:
        """Names the file and the line of a document."""
        source, row = self.locate(position)
        return self.sources[source].where(row)

    def prompt(self, source: int, row: int, *, enable_thinking: bool | None = None) -> Example | RowError | None:
        """Returns the conversation of a row before its last answer, rendered for the next turn; nothing of it trains.

        Args:
          enable_thinking: what the template is told; None leaves its default.

        Returns:
          None for a row without an answer; an error if it cannot be used, the template refuses it, or an image of it
          cannot be opened.
        """
        try:
            content = self._readers[source].read(self.sources[source][row])
        except RowError as err:
            return err
        if isinstance(content, str):
            return None
        last = max((n for n, message in enumerate(content.messages) if message["role"] == "assistant"), default=0)
        if not last:
            return None
        options = {"tools": content.tools, "enable_thinking": enable_thinking, "add_generation_prompt": True}
        try:
            text = self._tokenizer.chat_template.render(content.messages[:last], **options)
            [rendered] = self._with_pictures([Rendered(text, [])], content, source, row)
        except ChatTemplateError as err:
            return RowError("template", str(err))
        except RowError as err:
            return err
        [example] = encode_conversations(self._tokenizer, [rendered])
        return example if self.vision is None else self.vision.finish(example, rendered.pictures)

    def identity(self) -> dict[str, Any]:
        """Everything that decides the documents and their order."""
        names = ("sequence_length", "seed", "train_on", "train_on_thinking")
        held_out = {} if self.config.eval_fraction is None else {"eval_fraction": self.config.eval_fraction}
        return {
            "data": "-".join(source.fingerprint for source in self.sources),
            "forms": [reader.identity for reader in self._readers],
            "rows": sum(map(len, self.sources)),
            "shares": self._mixture.places,
            "vocabulary": len(self._tokenizer),
            **held_out,
            **({} if self.vision is None else {"vision": self.vision.identity}),
        } | {name: getattr(self.config, name) for name in names}

    @property
    def origins(self) -> list[str]:
        """The content and the form of each source, which decide its documents whatever their order."""
        sources = zip(self.sources, self._readers, strict=True)
        return [f"{source.fingerprint} {reader.identity}" for source, reader in sources]

    def passes_before(self, position: int) -> dict[str, float]:
        """Says how many times each source was read in full before a position."""
        draws = self._mixture.draws_before(position)
        sources = zip(self.config.mixture, draws, self.sources, strict=True)
        return {setting.path: count / len(source) for setting, count, source in sources}

    def check(self) -> tuple[int, Counter[str]]:
        """Checks rows as the module says, and finds the form of each source.

        Returns:
          How many rows were checked, and the unusable ones among them by reason.

        Raises:
          ValueError: a row is unusable and ``bad_rows`` is ``error``; every row is; or the rows of a source may be of
            several forms.
        """
        checked, unusable = 0, Counter()
        for setting, source, reader in zip(self.config.mixture, self.sources, self._readers, strict=True):
            survey = Survey(reader, setting)
            for row in _rows_to_check(source):
                checked += 1
                try:
                    content = survey.read(source[row], lambda source=source, row=row: source.where(row))
                    if isinstance(content, Conversation):
                        self.has_conversations = True
                        self._render(content)
                except RowError as err:
                    stop_if_refused(source.where(row), err, self.config)
                    self.tell_left_out(source.where(row), err)
                    unusable[err.reason] += 1
            survey.finish(source.columns_not_read)
        if unusable.total() == checked:
            raise self.none_usable(unusable, next(iter(self._told.values())), "no row")
        if unusable:
            logger.warning("%d of %d rows are left out: %s", unusable.total(), checked, dict(unusable))
        return checked, unusable

    def none_usable(self, reasons: Counter[str], first: str, what: str) -> ValueError:
        """Returns the error of data of which nothing is left to train on.

        Args:
          reasons: what is left out, by reason.
          first: where the first of it is, and what is wrong there.
          what: the rows that were read, such as ``no row``.
        """
        helps = "".join(f" ({reason}: {remedy})" for reason, remedy in REMEDIES.items() if reason in reasons)
        return ValueError(
            f"{what} of {self.names} can be used: {dict(reasons)}; mend the rows{helps}, such as {first}."
        )

    def tell_left_out(self, where: str, err: RowError) -> None:
        """Logs that a document is left out, once for each reason."""
        if err.reason not in self._told:
            self._told[err.reason] = f"{where}: {err}"
            logger.warning("%s is left out, as are all rows like it: %s", where, err)

    def _prepare(self, source: int, row: int) -> Sequence[Rendered | Example | RowError]:
        """Reads and checks a row; renders a conversation, tokenises a text."""
        try:
            content = self._readers[source].read(self.sources[source][row])
            if isinstance(content, str):
                pieces = encode_text(self._tokenizer, content, max_length=self.config.sequence_length)
                return pieces if self.vision is None else [self.vision.finish(piece) for piece in pieces]
            return self._with_pictures(self._render(content), content, source, row)
        except RowError as err:
            return [err]

    def _with_pictures(self, rendered: list[Rendered], content: Conversation, source: int, row: int) -> list[Rendered]:
        """Opens the images and videos that texts of a conversation show.

        Raises:
          RowError: one cannot be opened.
        """
        if self.vision is None:
            return rendered
        pictures = self.vision.open(content.media, self.sources[source].folder(row))
        return [self.vision.place(each, pictures) for each in rendered]

    def _render(self, content: Conversation) -> list[Rendered]:
        """Renders a conversation.

        Raises:
          RowError: the template refuses it, or nothing of it trains.
        """
        try:
            rendered = render_conversation(
                self._tokenizer.chat_template,
                content,
                train_on=self.config.train_on,
                train_on_thinking=self.config.train_on_thinking,
            )
        except ChatTemplateError as err:
            raise RowError("template", str(err)) from err
        if not rendered:
            raise RowError("untrained", "the last turn is marked as not to be trained, and data.train_on is last")
        return rendered

    def _finish(self, example: Example, pictures: tuple[Picture, ...]) -> Example | RowError:
        """Completes a tokenised conversation, which must fit into a sequence."""
        longest, vision = self.config.sequence_length, self.config.vision
        if self.vision is not None:
            example = self.vision.finish(example, pictures)
        if len(example) > longest:
            return RowError("too_long", f"{len(example)} tokens, more than data.sequence_length={longest}")
        if vision is not None and example.num_patches > vision.patches_per_sequence:
            return RowError(
                "too_many_patches",
                f"{example.num_patches} patches, more than "
                f"data.vision.patches_per_sequence={vision.patches_per_sequence}",
            )
        return example

    def locate(self, position: int) -> tuple[int, int]:
        """Returns the source that a document is from, and its row there."""
        source, draw = self._mixture[position]
        return source, self._rows[source][draw]


def is_refused(reason: str, config: DataConfig) -> bool:
    """Tells whether rows that are unusable for a reason stop the run. What the user's function left out never does."""
    return reason != "left_out" and getattr(config, policy_of(reason)) == "error"


def policy_of(reason: str) -> Literal["long_rows", "bad_rows"]:
    """Names the setting that says what becomes of rows that are unusable for a reason."""
    return "long_rows" if reason in REMEDIES else "bad_rows"


def stop_if_refused(where: str, err: RowError, config: DataConfig) -> None:
    """Stops a run at a row that its policy refuses, with an error that names the ways out.

    Raises:
      ValueError: the row is refused.
    """
    if not is_refused(err.reason, config):
        return
    policy = policy_of(err.reason)
    other = REMEDIES.get(err.reason, "mend the row")
    option = policy.replace("_", "-")
    raise ValueError(f"{where}: {err}; {other}, or leave such rows out with --data.{option} drop.") from err


def _open(source: Source) -> RowSource:
    """Finds and indexes the files of a source, and logs which they are."""
    files = find_files(source.path, hub_files=source.hub_files, subset=source.subset, split=source.split)
    rows = RowSource(files, None if source.convert else columns_of())
    names = ", ".join(str(file) if file.parent == Path() else file.name for file in files[:10])
    more = f" and {len(files) - 10} more" if len(files) > 10 else ""
    counted = f"{len(rows):,} rows in {len(files)} file{'s' * (len(files) > 1)}"
    logger.info("%s: %s: %s%s", source.path, counted, names, more)
    return rows


def _rows_to_check(source: RowSource) -> Iterator[int]:
    """Yields every row of a small source, or stretches of neighbours that are evenly spread over a large one.

    Neighbours are cheap to read in any format.
    """
    count = len(source)
    if source.num_bytes <= _CHECKED_BYTES:
        yield from range(count)
        return
    stretch = max(1, count * _CHECKED_BYTES // source.num_bytes // _CHECKED_RUNS)
    for number in range(_CHECKED_RUNS):
        start = number * (count - stretch) // (_CHECKED_RUNS - 1)
        yield from range(start, min(start + stretch, count))
