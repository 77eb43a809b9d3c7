"""The validation data: read once before a run, packed in the order of the files, and held in memory as tokens."""

import dataclasses
import glob
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

from qwen35_jax import gcs
from qwen35_jax.processing import Tokenizer
from train.batch import HostBatch
from train.config.data import DataConfig
from train.data.documents import Documents, stop_if_refused
from train.data.masking import Example
from train.data.packing import Key, PackedSequence, Packer, Signals, make_batch
from train.data.rows import RowError
from train.data.vision import VisionReader

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 30
"""What the validation batches of a process may take in memory."""
# Rows that are rendered and tokenised together.
_RUN = 64


class PackedBatches(Sequence[HostBatch]):
    """Batches that are laid out each time they are asked for, so that signals take the memory of one batch."""

    def __init__(self, packed: list[list[PackedSequence]], lay_out: partial[HostBatch]):
        """Takes the sequences of each batch, and what makes a batch of them."""
        self.packed, self._lay_out = packed, lay_out

    def __len__(self) -> int:
        return len(self.packed)

    @overload
    def __getitem__(self, index: int) -> HostBatch: ...

    @overload
    def __getitem__(self, index: slice) -> "PackedBatches": ...

    def __getitem__(self, index: int | slice) -> "HostBatch | PackedBatches":
        """Lays a batch out.

        Raises:
          ValueError: a document has no signal, or shows what cannot be decoded and ``bad_rows`` is ``error``.
        """
        if isinstance(index, slice):
            return PackedBatches(self.packed[index], self._lay_out)
        return self._lay_out(self.packed[index])


class ValidationData(NamedTuple):
    """Batches of the shape that training has; the last one is filled up with empty sequences."""

    batches: PackedBatches
    """Those sequences of each batch that this process feeds."""
    identity: dict[str, Any]
    """All that decides them."""
    documents: Documents
    rows: list[tuple[int, int]]
    """Source and number of every row, in order."""


def read_validation(
    config: DataConfig,
    tokenizer: Tokenizer,
    sequences: range,
    training: Documents,
    signals: Signals | None = None,
) -> ValidationData | None:
    """Reads the rows that ``data.eval_*`` name, which are checked and left out as those of training are.

    Args:
      sequences: the neighbouring sequences of every batch that this process feeds.
      training: the documents of training, some of which may be held out.
      signals: further values for the tokens, which are read when a batch is laid out.

    Raises:
      ValueError: a row or a file cannot be used, no token would be trained, or the data are too large.
    """
    if not config.validates:
        return None
    try:
        documents = training if config.eval_fraction is not None else _open(config, tokenizer, training.vision)
        if signals is not None:
            signals.check_documents(documents)
        rows = _rows(documents)
        packed = _pack_batches(documents, rows, sequences, config.eval_batches)
    except ValueError as err:
        raise ValueError(f"validation data: {_renamed(str(err), config)}") from err
    lay_out = partial(
        _lay_out,
        documents,
        rows,
        sequence_length=config.sequence_length,
        pad_token_id=tokenizer.pad_token_id,
        signals=signals,
    )
    identity = documents.identity() | {"eval_fraction": config.eval_fraction, "eval_batches": config.eval_batches}
    return ValidationData(PackedBatches(packed, lay_out), identity, documents, rows)


def _open(config: DataConfig, tokenizer: Tokenizer, vision: VisionReader | None) -> Documents:
    """Opens and checks data of their own to validate on. They are read as the training data are."""
    path = config.eval_path
    is_hub_id = path is not None and not (
        gcs.is_address(path) or glob.has_magic(path) or Path(path).expanduser().exists()
    )
    settings = dataclasses.replace(
        config,
        path=config.eval_path or config.path,
        sources=(),
        split=config.eval_split or ("validation" if is_hub_id else None),
        subset=config.subset if config.eval_path in (None, config.path) else None,
        hub_files=None,
        eval_path=None,
        eval_split=None,
        eval_batches=None,
    )
    documents = Documents(settings, tokenizer, vision)
    documents.check()
    return documents


def _renamed(message: str, config: DataConfig) -> str:
    """Puts the settings of the validation data in place of those of the training data."""
    if config.eval_path is not None:
        message = message.replace("data.path", "data.eval_path")
    return message.replace("--data.split", "--data.eval-split").replace("--data.path", "--data.eval-path")


def _rows(documents: Documents) -> list[tuple[int, int]]:
    if documents.config.eval_fraction is None:
        return [(0, row) for row in range(len(documents.sources[0]))]
    return [(source, row) for source, rows in enumerate(documents.held_out) for row in sorted(rows)]


def row_name(documents: Documents, rows: list[tuple[int, int]], key: Key) -> str:
    """Names the file and the line of a validation document by its key, which begins with the place of its row."""
    source, row = rows[key[0]]
    return f"validation data: {documents.sources[source].where(row)}"


def _lay_out(
    documents: Documents, rows: list[tuple[int, int]], sequences: Sequence[PackedSequence], **options: Any
) -> HostBatch:
    where, vision = partial(row_name, documents, rows), documents.vision
    if vision is not None:
        vision.start(example for sequence in sequences for _, example in sequence)
        sequences = [[(key, _decoded(documents, vision, where(key), each)) for key, each in s] for s in sequences]
    return make_batch(sequences, vision=vision, where=where, **options)


def _decoded(documents: Documents, vision: VisionReader, where: str, example: Example) -> Example:
    example, err = vision.decoded(example)
    if err is not None:
        stop_if_refused(where, err, documents.config)
        documents.tell_left_out(where, err)
    return example


def _pack_batches(
    documents: Documents, rows: list[tuple[int, int]], sequences: range, limit: int | None
) -> list[list[PackedSequence]]:
    """Packs the rows, and returns the sequences of each batch that this process feeds."""
    config, batches, trained = documents.config, [], 0
    packed = _pack(documents, rows)
    bytes_each = (9 if config.vision is None else 21) * len(sequences) * config.sequence_length
    for whole in islice(iter(lambda: list(islice(packed, config.sequences_per_batch)), []), limit):
        if (len(batches) + 1) * bytes_each > MOST_BYTES:
            raise ValueError(
                f"they fill more than {len(batches)} batches, which take {MOST_BYTES >> 30} GiB of memory; limit them "
                f"with data.eval_batches, or give fewer rows."
            )
        trained += sum(int(example.trained.sum()) for sequence in whole for _, example in sequence)
        filled_up = [*whole, *[[]] * (config.sequences_per_batch - len(whole))]
        batches.append(filled_up[sequences.start : sequences.stop])
    if not trained:
        raise ValueError(f"no token of {documents.names} is trained, so there is no loss; give rows with answers.")
    logger.info("validation: %d rows in %d batches, %s trained tokens", len(rows), len(batches), f"{trained:,}")
    return batches


def _pack(documents: Documents, rows: list[tuple[int, int]]) -> Iterator[PackedSequence]:
    """Yields packed sequences of all rows that can be used; a key holds the place of a row in ``rows``."""
    config, dropped = documents.config, Counter()
    patches = 1 if config.vision is None else config.vision.patches_per_sequence
    packer = Packer(config.sequence_length, config.open_sequences, patches)
    for start in range(0, len(rows), _RUN):
        run = rows[start : start + _RUN]
        for place, ((source, row), document) in enumerate(zip(run, documents.load_rows(run), strict=True), start):
            for piece, example in enumerate(document):
                if not isinstance(example, RowError):
                    yield from packer.add((place, piece), example)
                    continue
                where = documents.sources[source].where(row)
                stop_if_refused(where, example, config)
                if example.reason not in dropped:
                    logger.warning("validation: %s is left out, as are all rows like it: %s", where, example)
                dropped[example.reason] += 1
    if dropped:
        logger.warning("validation: %d of %d rows are left out: %s", dropped.total(), len(rows), dict(dropped))
    yield from packer.flush()
