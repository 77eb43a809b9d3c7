"""How many batches some epochs fill. A run needs the number before its first step, for the decay of its learning rate.

Every document is tokenised once for it. For large data the number is kept in the user's cache
(``$XDG_CACHE_HOME/qwen35-jax``, by default ``~/.cache``), so that a run that resumes need not count again.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from qwen35_jax.processing import Tokenizer
from qwen35_jax.storage import user_cache, write_json
from train.data.documents import Document, Documents
from train.data.masking import Example
from train.data.measure import Measurement, measure
from train.data.pictures import Picture
from train.data.shards import Shard
from train.data.vision import VisionReader

logger = logging.getLogger(__name__)


def batches_of_epochs(documents: Documents, tokenizer: Tokenizer, found: Measurement) -> int:
    """Returns exactly how many batches the epochs of the settings fill, from the cache if it was counted before.

    Args:
      found: what was measured of these documents already. If that is all of them, nothing is read again.

    Raises:
      ValueError: a document cannot be used, and the policy for its reason is ``error``.
    """
    config = documents.config
    assert config.epochs is not None, "endless data fill any number of batches"
    if found.is_whole:
        return count_batches(documents, found)
    decides = [documents.identity(), config.sequences_per_batch, config.shards, config.open_sequences, config.epochs]
    text = json.dumps([decides, tokenizer.backend.to_str(), tokenizer.chat_template.source])
    kept = user_cache("epochs") / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    try:
        return int(json.loads(kept.read_text(encoding="utf-8"))["batches"])
    except (OSError, ValueError, KeyError):
        logger.info("counting the tokens of %s documents", f"{documents.epoch_length:,}")
    batches = count_batches(documents, measure(documents, whole=True))
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"batches": batches})
    except OSError as err:
        logger.warning("the number of batches cannot be kept in %s (%s): every start will count again", kept, err)
    return batches


class _StandIns:
    """Stands for the documents of a run whose lengths are known; their tokens are of no meaning."""

    def __init__(self, documents: Documents, found: Measurement):
        self.config = documents.config
        self.vision: VisionReader | None = None
        self.epoch_length, self.names, self.where = documents.epoch_length, documents.names, documents.where
        self.tell_left_out = documents.tell_left_out
        self._locate, self._found = documents.locate, found
        self._measured_at = [np.zeros(len(source), np.int32) for source in documents.sources]
        for position in range(found.documents):
            source, row = documents.locate(position)
            self._measured_at[source][row] = position

    def load(self, positions: Sequence[int]) -> list[Document]:
        """Returns stand-ins for the examples of each document; none for a document that is left out."""
        return [self._stand_ins(position) for position in positions]

    def _stand_ins(self, position: int) -> Document:
        source, row = self._locate(position)
        measured_at = int(self._measured_at[source][row])
        start = int(self._found.ends[measured_at - 1]) if measured_at else 0
        own = slice(start, self._found.ends[measured_at])
        sizes = zip(self._found.lengths[own].tolist(), self._found.patches[own].tolist(), strict=True)
        return [_stand_in(*each) for each in sizes]


@lru_cache
def _stand_in(length: int, patches: int) -> Example:
    pictures = (Picture((1, 1, patches), _never, _never),) if patches else ()
    return Example(np.zeros(length, np.int32), np.zeros(length, bool), pictures=pictures)


def _never() -> Any:
    raise AssertionError("what stands for an image is never looked at")


def count_batches(documents: Documents, found: Measurement) -> int:
    """Counts the batches of the settings' epochs exactly: packs stand-ins of the same lengths as the run will pack.

    Args:
      found: a measurement of a whole epoch of these documents.
    """
    assert found.is_whole, "every row must have been measured"
    measured, config = _StandIns(documents, found), documents.config
    shards = [Shard(measured, number, num_threads=1) for number in range(config.shards)]
    size = config.sequences_per_batch // config.shards
    batches = 0
    while any([shard.next_sequences(size) for shard in shards]):
        batches += 1
    return batches
