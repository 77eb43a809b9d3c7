"""Batches in an order that depends on the seed alone, from any position.

The order of the documents is a pure function of (seed, position): grain shuffles row numbers anew for every epoch, and
threads read, render and tokenise ahead without changing the order. The iterator's state is the position of the next
document and the positions of those that the packer still holds, which are tokenised again when a state is restored.
Every process makes the same global batches and keeps its own part, so that a run can go on with another number of
processes.
"""

import logging
from collections import Counter, deque
from typing import Any

import grain
import numpy as np
from jaxtyping import Int64

from qwen35_jax.processing import ChatTemplateError, Tokenizer
from train.data.config import DataConfig
from train.data.masking import Example, encode_conversation, encode_text
from train.data.packing import Batch, Packer, Row, make_batch
from train.data.rows import RowError, check_row, forbidden_tokens
from train.data.sources import RowSource, find_files

logger = logging.getLogger(__name__)


def make_batches(config: DataConfig, tokenizer: Tokenizer) -> "BatchIterator":
    """Opens the data, checks every row that can be checked without tokenising, and returns the iterator of batches.

    Raises:
      ValueError: the data cannot be read, a row is unusable and ``bad_rows`` is ``error``, or no row is usable.
    """
    source = RowSource(find_files(config.path, hub_files=config.hub_files))
    return BatchIterator(config, tokenizer, source)


class BatchIterator:
    """Packed batches: ``{"input_ids", "segment_ids", "trained"}``, numpy arrays [rows_per_batch, sequence_length].

    Ends after ``epochs`` passes, the last batch filled up with padding; never with ``epochs=None``.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, source: RowSource):
        self._config, self._tokenizer, self._source = config, tokenizer, source
        self._usable, self._unusable = _find_usable_rows(config, tokenizer, source)
        self._documents = (
            grain.MapDataset.range(len(self._usable)).shuffle(seed=config.seed).repeat(config.epochs).map(self._encode)
        )
        options = grain.ReadOptions(num_threads=config.num_threads, prefetch_buffer_size=16 * config.num_threads)
        self._stream = iter(self._documents.to_iter_dataset(options))
        self._packer = Packer(config.sequence_length, config.open_rows)
        self._ready: deque[Row] = deque()
        self._position = 0
        self._unused_in_a_row = 0
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          ValueError: a row is too long or unusable and its policy is ``error``, or a whole epoch was unusable.
        """
        config = self._config
        while len(self._ready) < config.rows_per_batch:
            document = next(self._stream, None)
            if document is None:
                self._ready.extend(self._packer.flush())
                break
            self._take(document)
        if not self._ready:
            raise StopIteration
        rows = [self._ready.popleft() for _ in range(min(len(self._ready), config.rows_per_batch))]
        batch = make_batch(
            rows,
            num_rows=config.rows_per_batch,
            row_length=config.sequence_length,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        self._counts["batches"] += 1
        self._counts["rows"] += len(rows)
        self._counts["tokens"] += int(np.count_nonzero(batch["segment_ids"]))
        self._counts["trained_tokens"] += int(np.count_nonzero(batch["trained"]))
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns a JSON-able state from which `set_state` continues with exactly the batches that would follow."""
        return {
            "identity": self._identity(),
            "position": self._position,
            "open": [_keys(row) for row in self._packer.open],
            "ready": [_keys(row) for row in self._ready],
            "counts": dict(self._counts),
            "dropped": dict(self._dropped),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state of `get_state`, made with the same data and settings.

        Raises:
          ValueError: the data, the tokenizer or a setting that decides the order are not those of the state.
        """
        mine = self._identity()
        changed = [name for name, value in mine.items() if state["identity"].get(name) != value]
        if changed:
            was = ", ".join(f"{name} was {state['identity'].get(name)!r}, is {mine[name]!r}" for name in changed)
            raise ValueError(f"the saved position belongs to other data: {was}; start a new run in another workdir.")
        self._position = state["position"]
        self._stream.set_state({"next_index": self._position})
        self._packer.open = [self._restore(keys) for keys in state["open"]]
        self._ready = deque(self._restore(keys) for keys in state["ready"])
        self._counts, self._dropped = Counter(state["counts"]), Counter(state["dropped"])
        self._unused_in_a_row = 0

    def report(self) -> dict[str, Any]:
        """Counts what became of the data so far.

        Returns:
          ``rows_in_data`` and ``unusable_rows`` (by reason) of the files; ``epochs`` passed; of all passes together
          ``documents`` read, ``dropped`` (by reason), ``batches``, ``tokens`` and ``trained_tokens`` in them, and
          ``packing_efficiency``, the share of the rows' positions that holds a token.
        """
        space = self._counts["rows"] * self._config.sequence_length
        return {
            "rows_in_data": len(self._source),
            "unusable_rows": dict(self._unusable),
            "epochs": self._position / len(self._usable),
            "documents": self._position,
            "dropped": dict(self._dropped),
            **{name: self._counts[name] for name in ("batches", "tokens", "trained_tokens")},
            "packing_efficiency": self._counts["tokens"] / space if space else 0.0,
        }

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the batches besides the position; more epochs change none of them."""
        names = ("sequence_length", "rows_per_batch", "seed", "train_on", "train_on_thinking", "open_rows")
        settings = {name: getattr(self._config, name) for name in names}
        data = {"data": self._source.fingerprint, "rows": len(self._usable), "vocabulary": len(self._tokenizer)}
        return data | settings

    def _take(self, document: tuple[int, list[Example] | RowError]) -> None:
        """Hands the next document to the packer, or counts why there is none."""
        row, examples = document
        position, self._position = self._position, self._position + 1
        if not isinstance(examples, RowError):
            self._unused_in_a_row = 0
            for part, example in enumerate(examples):
                self._ready.extend(self._packer.add((position, part), example))
            return
        where, reason = self._source.where(row), examples.reason
        name = "long_rows" if reason == "too_long" else "bad_rows"
        if getattr(self._config, name) == "error":
            raise _refusal(where, examples, name)
        if reason not in self._dropped:
            logger.warning("%s is left out, as will be all rows like it: %s", where, examples)
        self._dropped[reason] += 1
        self._unused_in_a_row += 1
        if self._unused_in_a_row == len(self._usable):
            raise ValueError(
                f"no row of data.path={self._config.path!r} can be used; an epoch was left out: {dict(self._dropped)}; "
                "raise data.sequence_length or mend the rows."
            )

    def _restore(self, keys: list[list[int]]) -> Row:
        return [((position, part), self._documents[position][1][part]) for position, part in keys]

    def _encode(self, number: int) -> tuple[int, list[Example] | RowError]:
        """Turns the usable row ``number`` into its row number and examples; runs in grain's threads."""
        row = int(self._usable[number])
        try:
            return row, _encode_row(self._config, self._tokenizer, self._source[row])
        except RowError as err:
            return row, err


def _encode_row(config: DataConfig, tokenizer: Tokenizer, row: dict[str, Any]) -> list[Example]:
    if row.get("messages") is None:
        return encode_text(tokenizer, row["text"], max_length=config.sequence_length)
    try:
        example = encode_conversation(
            tokenizer,
            row["messages"],
            row.get("tools"),
            train_on=config.train_on,
            train_on_thinking=config.train_on_thinking,
        )
    except ChatTemplateError as err:
        raise RowError("template", str(err)) from err
    if len(example) > config.sequence_length:
        raise RowError("too_long", f"{len(example)} tokens, more than data.sequence_length={config.sequence_length}")
    return [example]


def _find_usable_rows(
    config: DataConfig, tokenizer: Tokenizer, source: RowSource
) -> tuple[Int64[np.ndarray, " N"], Counter[str]]:
    """Checks every row; returns the numbers of the usable ones and counts the others by reason."""
    forbidden = forbidden_tokens(tokenizer.special_tokens)
    usable, unusable = [], Counter()
    for row in range(len(source)):
        try:
            check_row(source[row], forbidden)
        except RowError as err:
            if config.bad_rows == "error":
                raise _refusal(source.where(row), err, "bad_rows") from err
            if err.reason not in unusable:
                logger.warning("%s is left out, as are all rows like it: %s", source.where(row), err)
            unusable[err.reason] += 1
        else:
            usable.append(row)
    if not usable:
        raise ValueError(f"no row of data.path={config.path!r} can be used: {dict(unusable)}; mend the rows.")
    if unusable:
        logger.warning("%d of %d rows are left out: %s", unusable.total(), len(source), dict(unusable))
    return np.asarray(usable, np.int64), unusable


def _refusal(where: str, err: RowError, policy: str) -> ValueError:
    other = "raise data.sequence_length" if policy == "long_rows" else "mend the row"
    return ValueError(f"{where}: {err}; {other}, or set data.{policy}=drop to leave such rows out.")


def _keys(row: Row) -> list[list[int]]:
    return [[position, part] for (position, part), _ in row]
