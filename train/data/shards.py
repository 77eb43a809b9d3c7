"""One data shard: the documents dealt to it, packed into sequences, from any position."""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import grain

from train.config.data import DataConfig
from train.data.documents import Document, stop_if_refused
from train.data.masking import Example
from train.data.packing import PackedSequence, Packer, used
from train.data.rows import RowError
from train.data.vision import VisionReader

_ENDLESS = 1 << 62
_MAX_UNUSED = 100_000
# Documents that a thread takes at a time. One at a time would be slow: grain's own work for an element costs as much as
# a short document, and so does a tokenizer that the processor's cache has lost.
_RUN = 8
# How much may be tokenised ahead of the packer: enough for seconds of training, and bounded in memory.
_MAX_DOCUMENTS_AHEAD, _MAX_TOKENS_AHEAD = 2048, 1 << 26
# Fewer where there are images, for a document may hold the bytes of their files.
_MAX_PICTURED_AHEAD = 256
# How many batches of images are decoded ahead: one is laid out while the next one is decoded.
_BATCHES_DECODED = 2


@runtime_checkable
class Corpus(Protocol):
    """The documents of a run by their position, as ``train.data.documents`` has them."""

    config: DataConfig
    vision: VisionReader | None

    @property
    def epoch_length(self) -> int:
        """Documents in one epoch."""
        ...

    @property
    def names(self) -> str:
        """The settings that name the data, for messages."""
        ...

    def load(self, positions: Sequence[int]) -> list[Document]:
        """Returns what is at each position."""
        ...

    def where(self, position: int) -> str:
        """Names the file and the line of a document."""
        ...

    def tell_left_out(self, where: str, err: RowError) -> None:
        """Logs that a document is left out, once for each reason."""
        ...


class Shard:
    """Every ``shards``-th document from ``number`` on, in packed sequences.

    grain's threads read, render and tokenise ahead without changing the order. The images of the next documents are
    decoded by threads of their own. The state says how many documents were taken, and the positions of those still
    held. These are tokenised and decoded again when a state is restored.
    """

    def __init__(self, documents: Corpus, number: int, num_threads: int):
        config = documents.config
        self._documents = documents
        end = _ENDLESS if config.epochs is None else config.epochs * documents.epoch_length
        self._positions = range(number, end, config.shards)
        most = _MAX_DOCUMENTS_AHEAD if documents.vision is None else min(_MAX_DOCUMENTS_AHEAD, _MAX_PICTURED_AHEAD)
        ahead = min(most, _MAX_TOKENS_AHEAD // config.sequence_length) // _RUN
        options = grain.ReadOptions(
            num_threads=num_threads,
            prefetch_buffer_size=max(2 * num_threads, ahead * num_threads // config.num_threads),
        )
        num_runs = -(-len(self._positions) // _RUN)
        self._stream = iter(grain.MapDataset.range(num_runs).map(self._load).to_iter_dataset(options))
        self._loaded: deque[Document] = deque()
        patches = 1 if config.vision is None else config.vision.patches_per_sequence
        self._vision, self._patches_ahead, self._most_ahead = documents.vision, 0, 0
        if self._vision is not None:
            self._most_ahead = _BATCHES_DECODED * patches * config.sequences_per_batch // config.shards
        self._packer = Packer(config.sequence_length, config.open_sequences, patches)
        self._ready: deque[PackedSequence] = deque()
        self._taken = 0
        self._unused_in_a_row = 0
        self.counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """Documents taken from the data so far, those left out included."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many of these wait, in whole or in part, in sequences that no batch has held yet."""
        return len({position for sequence in (*self._packer.open, *self._ready) for (position, _), _ in sequence})

    def next_sequences(self, count: int) -> list[PackedSequence]:
        """Returns the next sequences; there are fewer than ``count`` at the end of the last epoch only.

        Raises:
          ValueError: a document is too long or unusable and its policy is ``error``, or none of very many was usable.
        """
        while len(self._ready) < count:
            self._load_ahead()
            if not self._loaded:
                self._ready.extend(self._packer.flush())
                break
            self._take(self._next_document())
        sequences = [self._ready.popleft() for _ in range(min(len(self._ready), count))]
        self.counts["sequences"] += len(sequences)
        self.counts["tokens"] += sum(map(used, sequences))
        self.counts["trained_tokens"] += sum(int(e.trained.sum()) for sequence in sequences for _, e in sequence)
        return sequences

    def get_state(self) -> dict[str, Any]:
        """Returns a JSON-able state from which `set_state` continues exactly."""
        return {
            "taken": self._taken,
            "open": [_keys(sequence) for sequence in self._packer.open],
            "ready": [_keys(sequence) for sequence in self._ready],
            "counts": dict(self.counts),
            "dropped": dict(self.dropped),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state of `get_state`.

        Raises:
          ValueError: an image or a video that was read before cannot be read now.
        """
        held_keys = [*state["open"], *state["ready"]]
        positions = sorted({position for keys in held_keys for position, _ in keys})
        held = dict(zip(positions, self._documents.load(positions), strict=True))
        restored = [
            [((position, piece), self._held(position, piece, held[position])) for position, piece in keys]
            for keys in held_keys
        ]
        if self._vision is not None:
            self._vision.start(example for sequence in restored for _, example in sequence)
            restored = [[(key, self._decoded(key[0], each)[0]) for key, each in sequence] for sequence in restored]
        self._taken = state["taken"]
        run, place = divmod(self._taken, _RUN)
        self._stream.set_state({"next_index": run})
        self._loaded, self._patches_ahead = deque(), 0
        self._append([*next(self._stream, ())][place:])
        self._packer.restore(restored[: len(state["open"])])
        self._ready = deque(restored[len(state["open"]) :])
        self.counts, self.dropped = Counter(state["counts"]), Counter(state["dropped"])
        self._unused_in_a_row = 0

    def _load(self, run: int) -> list[Document]:
        """Reads and tokenises the next few documents; runs in grain's threads."""
        return self._documents.load(self._positions[run * _RUN : (run + 1) * _RUN])

    def _load_ahead(self) -> None:
        """Takes the next documents from the stream: one if there is none, and as many as are to be decoded ahead."""
        while not self._loaded or (self._patches_ahead < self._most_ahead and len(self._loaded) < _MAX_DOCUMENTS_AHEAD):
            run = next(self._stream, None)
            if run is None:
                return
            self._append(run)

    def _append(self, documents: Sequence[Document]) -> None:
        self._loaded.extend(documents)
        self._patches_ahead += sum(map(_num_patches, documents))
        if self._vision is not None:
            self._vision.start(example for document in documents for example in _usable(document))

    def _next_document(self) -> Document:
        document = self._loaded.popleft()
        self._patches_ahead -= _num_patches(document)
        return document

    def _decoded(self, position: int, example: Example) -> tuple[Example, RowError | None]:
        """Waits until the images of a document are decoded, see `VisionReader.decoded`.

        Raises:
          ValueError: one cannot be decoded, and the policy is to stop.
        """
        if self._vision is None:
            return example, None
        example, err = self._vision.decoded(example)
        if err is not None:
            stop_if_refused(self._documents.where(position), err, self._documents.config)
        return example, err

    def _held(self, position: int, piece: int, document: Document) -> Example:
        """Returns an example that the packer held when a state was saved, now that its row has been read again."""
        example = document[min(piece, len(document) - 1)]
        if isinstance(example, RowError):
            where = self._documents.where(position)
            raise ValueError(f"{where}: {example}; the run could read this when it was saved, so bring it back.")
        return example

    def _take(self, document: Document) -> None:
        """Hands the examples of the next document to the packer, and counts what cannot be used.

        Raises:
          ValueError: the policy is to stop, or none of very many documents was usable.
        """
        position = self._positions[self._taken]
        self._taken += 1
        if not document:
            self.counts["held_out"] += 1
            return
        unused = 0
        for piece, example in enumerate(document):
            if isinstance(example, RowError):
                err = example
            else:
                # The batches were counted by headers alone, so what cannot be decoded keeps its place.
                example, err = self._decoded(position, example)
                self._ready.extend(self._packer.add((position, piece), example))
            if err is not None:
                self._leave_out(position, err)
                unused += 1
        self._unused_in_a_row = self._unused_in_a_row + 1 if unused == len(document) else 0
        if self._unused_in_a_row == min(self._positions.step * self._documents.epoch_length, _MAX_UNUSED):
            raise ValueError(
                f"no row of {self._documents.names} can be used; {self._unused_in_a_row} documents in a row were left "
                f"out: {dict(self.dropped)}; raise --data.sequence-length or mend the rows."
            )

    def _leave_out(self, position: int, err: RowError) -> None:
        """Counts what is left out.

        Raises:
          ValueError: the policy is to stop.
        """
        where = self._documents.where(position)
        stop_if_refused(where, err, self._documents.config)
        self._documents.tell_left_out(where, err)
        self.dropped[err.reason] += 1


def _usable(document: Document) -> list[Example]:
    return [example for example in document if isinstance(example, Example)]


def _num_patches(document: Document) -> int:
    return sum(example.num_patches for example in _usable(document))


def _keys(sequence: PackedSequence) -> list[list[int]]:
    return [[position, piece] for (position, piece), _ in sequence]
