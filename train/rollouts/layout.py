"""Where rollouts stand in a batch: which sequences are theirs, and which documents share one.

Letters: B sequences, T tokens of a sequence.
"""

from collections.abc import Sequence

import numpy as np

from train.batch import HostBatch
from train.config.data import DataConfig
from train.data.packing import PackedSequence, Packer
from train.rollouts.rollout import Rollout


def pack(rollouts: Sequence[Rollout], sequences: int, data: DataConfig) -> list[PackedSequence]:
    """Packs rollouts by first fit in their order; sequences at the end may be empty.

    All fit if each sequence has room for its share of documents of the most tokens and patches: a document is refused
    by those sequences only that hold as many already.
    """
    patches = 1 if data.vision is None else data.vision.patches_per_sequence
    packer, packed = Packer(data.sequence_length, sequences, patches), []
    for each in rollouts:
        packed += packer.add((each.prompt.position, each.number), each.example())
    packed += packer.flush()
    assert len(packed) <= sequences, "the number of prompts is chosen so that all answers fit"
    return [*packed, *[[]] * (sequences - len(packed))]


def shares(count: int, of: int, sequences: range) -> tuple[range, range]:
    """Returns which of ``count`` rollout sequences, and which others, stand in a range of the ``of`` of a batch.

    Rollouts are spread evenly, wherever the range begins; so the mesh and the processes decide nothing about them.
    """
    first, last = (sequences.start * count // of, sequences.stop * count // of)
    return range(first, last), range(sequences.start - first, sequences.stop - last)


def are_rollouts(count: int, of: int, sequences: range) -> np.ndarray:
    """Returns for each sequence of a range whether it holds rollouts, bool [B]."""
    ends = np.arange(sequences.start, sequences.stop + 1) * count // of
    return np.diff(ends) > 0


def join(rollouts: HostBatch, data: HostBatch | None, where: np.ndarray) -> dict[str, np.ndarray]:
    """Lays the sequences of rollouts and of data out as one batch.

    Args:
      data: the tokens of the other sequences; None if there are none.
      where: bool [B], the places of rollouts.
    """
    if data is None:
        return dict(rollouts)
    others = {
        **data,
        "labelled": data["segment_ids"] > 0,
        "sampled_log_probs": np.zeros(data["segment_ids"].shape, np.float32),
    }
    batch = {}
    for name, own in rollouts.items():
        batch[name] = np.empty((len(where), *own.shape[1:]), own.dtype)
        batch[name][where], batch[name][~where] = own, others[name]
    return batch
