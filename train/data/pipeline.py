"""Makes batches, from any position and for any process.

The order depends on the data, the settings and the seed alone. Document ``i`` of the order (`train.data.documents`)
belongs to data shard ``i % shards``. Of every batch of ``B`` sequences, shard ``s`` packs its documents
(`train.data.shards`) into the sequences ``s B / shards`` to ``(s + 1) B / shards``. A process that feeds some of the
sequences reads the shards that fill them and no other. The state keeps each shard apart. So the states of several
processes can be joined, and any number of processes can go on from the whole.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from qwen35_jax.distributed import gather
from qwen35_jax.processing import Tokenizer
from train.batch import HostBatch
from train.config.data import DataConfig
from train.data.documents import Documents
from train.data.packing import PackedSequence, Signals, make_batch
from train.data.shards import Shard
from train.data.vision import VisionReader
from train.state import TrainState


@runtime_checkable
class Batches(Protocol):
    """An iterator over batches whose position can be stored and restored exactly."""

    @property
    def needs_state(self) -> bool:
        """Whether the next batch is made with the state that its step begins from."""
        ...

    def see(self, state: TrainState) -> None:
        """Takes the state that the next step begins from, before the batch of that step is asked for."""
        ...

    def __next__(self) -> HostBatch: ...

    def get_state(self) -> dict[str, Any]: ...

    def merge(self, state: dict[str, Any]) -> dict[str, Any]:
        """Joins a state of this process with those of the others; all processes call this."""
        ...

    def documents_later(self) -> Callable[[], list[list[str]]]: ...

    def figures(self) -> Mapping[str, float | int | None]:
        """Returns what the metrics shall tell of the batch last returned."""
        ...

    @property
    def epoch(self) -> float: ...


def make_batches(
    config: DataConfig,
    tokenizer: Tokenizer,
    sequences: range | None = None,
    signals: Signals | None = None,
    vision: VisionReader | None = None,
) -> "BatchIterator":
    """Opens the data, checks rows as far as that takes seconds, and returns the iterator of batches.

    Args:
      sequences: the neighbouring sequences of every batch that this process feeds; None for all.
      signals: further values for the tokens, which are read when a batch is laid out.
      vision: reads images and videos, where ``config.vision`` asks for them.

    Raises:
      ValueError: the data cannot be read; a row is unusable and ``bad_rows`` is ``error``; no row is usable;
        ``sequences`` are not those of a batch; or the signals are those of other data.
    """
    return BatchIterator(Documents(config, tokenizer, vision), tokenizer, sequences, signals)


class BatchIterator:
    """Yields packed batches: ``{"input_ids", "segment_ids", "trained"}``, numpy arrays [len(sequences), tokens].

    Where there are signals, their arrays [len(sequences), tokens, ...] come on top, and with images and videos those of
    `train.batch.vision_fields`.

    It ends after ``epochs``; the sequences of a data shard that ended before the others are padding then. With
    ``epochs=None`` it never ends. Nor does it for a process that reads some of the data shards only and cannot know
    when the others end: `batches_of_epochs` tells how many batches to take.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Tokenizer,
        sequences: range | None = None,
        signals: Signals | None = None,
    ):
        config = documents.config
        self._sequences = _check_sequences(config, sequences)
        self._config, self._pad_token_id = config, tokenizer.pad_token_id
        self._per_shard = config.sequences_per_batch // config.shards
        numbers = range(self._sequences[0] // self._per_shard, self._sequences[-1] // self._per_shard + 1)
        self._documents, self.signals = documents, signals
        self._checked, self._unusable = self._documents.check()
        if signals is not None:
            signals.check_documents(documents)
        threads = -(-config.num_threads // len(numbers))
        self._shards = {number: Shard(self._documents, number, threads) for number in numbers}
        self._num_batches = 0
        self._last: list[PackedSequence] = []

    @property
    def needs_state(self) -> bool:
        """Never: what the data hold does not depend on the weights."""
        return False

    def see(self, state: TrainState) -> None:
        """Does nothing."""

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> HostBatch:
        """Returns the next batch.

        Raises:
          ValueError: a row is too long or unusable and its policy is ``error``, a whole epoch was unusable, or a
            document has no signal.
        """
        size = self._per_shard
        by_shard = [shard.next_sequences(size) for shard in self._shards.values()]
        if not any(by_shard) and len(self._shards) == self._config.shards:
            raise StopIteration
        filled_up = [each for packed in by_shard for each in [*packed, *[[]] * (size - len(packed))]]
        first = self._sequences[0] - size * next(iter(self._shards))
        self._last = filled_up[first : first + len(self._sequences)]
        self._num_batches += 1
        return make_batch(
            self._last,
            sequence_length=self._config.sequence_length,
            pad_token_id=self._pad_token_id,
            signals=self.signals,
            vision=self._documents.vision,
            where=lambda key: self._documents.where(key[0]),
        )

    @property
    def packed(self) -> list[PackedSequence]:
        """The documents in each sequence of the batch last returned, in their order."""
        return self._last

    @property
    def corpus(self) -> Documents:
        """All documents that batches are made from."""
        return self._documents

    def documents(self) -> list[list[str]]:
        """Names, for each sequence of the batch last returned, the file and line of its documents in their order."""
        return self.documents_later()()

    def documents_later(self) -> Callable[[], list[list[str]]]:
        """Returns a function that does later what `documents` does: finding many lines may take longer than a step."""
        last = self._last
        return lambda: [[self._documents.where(position) for (position, _), _ in sequence] for sequence in last]

    def figures(self) -> Mapping[str, float | int | None]:
        """Returns nothing: the step counts what data hold."""
        return {}

    @property
    def epoch(self) -> float:
        """Epochs that the batches so far held, judged by the first data shard that this process reads."""
        first = next(iter(self._shards.values()))
        return (first.taken - first.waiting) * self._config.shards / self._documents.epoch_length

    def get_state(self) -> dict[str, Any]:
        """Returns a JSON-able state from which `set_state` continues with exactly the batches that would follow.

        It holds the data shards that this process reads; `merge` joins those of all processes.
        """
        return {
            "identity": self._identity(),
            "batches": self._num_batches,
            "shards": {str(number): shard.get_state() for number, shard in self._shards.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state with the same data and settings; any number of processes may have made it.

        Raises:
          ValueError: the data, the tokenizer or a setting that decides the order are not those of the state, the state
            lacks a data shard, or an image or a video that was read before cannot be read now.
        """
        mine = self._identity()
        changed = [name for name, value in mine.items() if state["identity"].get(name) != value]
        if changed:
            was = ", ".join(f"{name} was {state['identity'].get(name)!r}, is {mine[name]!r}" for name in changed)
            raise ValueError(f"the saved position belongs to other data: {was}; start a new run in another workdir.")
        if missing := [number for number in self._shards if str(number) not in state["shards"]]:
            raise ValueError(
                f"the saved position lacks data shards {missing}; it was saved by one of several processes: join the "
                "states of all with merge_states."
            )
        for number, shard in self._shards.items():
            shard.set_state(state["shards"][str(number)])
        self._num_batches, self._last = state["batches"], []

    def merge(self, state: dict[str, Any]) -> dict[str, Any]:
        """Joins a state of this process with those that the others pass at the same time; all processes call this.

        Raises:
          ValueError: they are not of one moment of one run.
        """
        return merge_states(gather(state))

    def report(self) -> dict[str, Any]:
        """Counts what became of the data so far, in the data shards that this process reads.

        Returns:
          ``rows_in_data``; of the ``rows_checked`` at the start the ``unusable_rows`` by reason; ``epochs`` that the
          batches held, and ``passes`` over each source that were read; ``documents`` read, those of them that are
          ``waiting`` for a batch, those ``held_out`` for validation, and those ``dropped`` by reason; ``batches``,
          ``tokens`` and ``trained_tokens`` in them; and ``packing_efficiency``, the fraction of positions that hold a
          token.
        """
        shards = self._shards.values()
        documents, waiting = (sum(getattr(shard, name) for shard in shards) for name in ("taken", "waiting"))
        counts = sum((shard.counts for shard in shards), Counter())
        space = counts["sequences"] * self._config.sequence_length
        # The position in the whole order, if the other shards are as far as these.
        position = documents * self._config.shards // len(shards)
        return {
            "rows_in_data": sum(map(len, self._documents.sources)),
            "rows_checked": self._checked,
            "unusable_rows": dict(self._unusable),
            "epochs": (documents - waiting) * self._config.shards / len(shards) / self._documents.epoch_length,
            "passes": self._documents.passes_before(position),
            "documents": documents,
            "waiting": waiting,
            "held_out": counts["held_out"],
            "dropped": dict(sum((shard.dropped for shard in shards), Counter())),
            "batches": self._num_batches,
            **{name: counts[name] for name in ("tokens", "trained_tokens")},
            "packing_efficiency": counts["tokens"] / space if space else 0.0,
        }

    def _identity(self) -> dict[str, Any]:
        """Returns all that decides the batches besides the position. More epochs change none of them."""
        names = ("sequences_per_batch", "shards", "open_sequences")
        return self._documents.identity() | {name: getattr(self._config, name) for name in names}


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Joins the states of all processes after the same batch into one, from which any number of them can go on.

    Raises:
      ValueError: they are not of one moment of one run, or a shard is in none of them.
    """
    first, shards = states[0], {}
    for state in states:
        for number, shard in state["shards"].items():
            if shards.setdefault(number, shard) != shard:
                raise ValueError(f"two processes saved different positions of data shard {number}.")
        if (state["identity"], state["batches"]) != (first["identity"], first["batches"]):
            raise ValueError("the processes read other data or are not at the same batch; their positions do not fit.")
    missing = [number for number in range(first["identity"]["shards"]) if str(number) not in shards]
    if missing:
        raise ValueError(
            f"no process saved the position of data shards {missing}; together they must feed all sequences."
        )
    ordered = {number: shards[number] for number in sorted(shards, key=int)}
    return {"identity": first["identity"], "batches": first["batches"], "shards": ordered}


def _check_sequences(config: DataConfig, sequences: range | None) -> range:
    every = range(config.sequences_per_batch)
    if sequences is None:
        return every
    if not sequences or sequences.step != 1 or sequences.start < 0 or sequences.stop > len(every):
        raise ValueError(
            f"sequences={sequences} are not neighbouring sequences of a batch; give a range within 0 to "
            f"data.sequences_per_batch={len(every)}."
        )
    return sequences
