"""Packing: no document is lost or split, and batches are laid out as the model reads them."""

import itertools

import numpy as np
import pytest

from train.data.masking import Example
from train.data.packing import Packer, make_batch, used


def example(length, first=0):
    return Example(np.arange(first, first + length, dtype=np.int32), np.arange(length) % 2 == 1)


def pack(lengths, sequence_length, open_sequences):
    packer = Packer(sequence_length, open_sequences)
    closed = [packer.add((i, 0), example(length)) for i, length in enumerate(lengths)]
    return [sequence for sequences in closed for sequence in sequences], packer.flush()


def positions(sequences):
    return [[key[0] for key, _ in sequence] for sequence in sequences]


def test_first_fit():
    closed, rest = pack([6, 5, 4, 3, 2, 10], sequence_length=10, open_sequences=4)
    assert positions(closed) == [[0, 2], [1, 3, 4], [5]]
    assert rest == []


def test_the_fullest_sequence_is_closed_to_make_room():
    closed, rest = pack([6, 8, 7, 4, 2], sequence_length=10, open_sequences=2)
    assert positions(closed) == [[1], [0, 3]]
    assert positions(rest) == [[2, 4]]


@pytest.mark.parametrize("open_sequences", [1, 3, 16])
def test_every_document_once_and_whole(open_sequences):
    lengths = np.random.default_rng(0).integers(1, 64, 500).tolist()
    closed, rest = pack(lengths, sequence_length=64, open_sequences=open_sequences)
    assert sorted(itertools.chain.from_iterable(positions(closed + rest))) == [*range(500)]
    assert len(rest) <= open_sequences
    for sequence in closed + rest:
        assert used(sequence) == sum(lengths[key[0]] for key, _ in sequence) <= 64


def test_batch_layout():
    sequences = [[((0, 0), example(3, 10)), ((1, 0), example(2, 20))], [((2, 0), example(4, 30))], []]
    batch = make_batch(sequences, sequence_length=6, pad_token_id=99)
    assert {name: array.dtype for name, array in batch.items()} == {
        "input_ids": np.int32,
        "segment_ids": np.int32,
        "trained": bool,
    }
    assert batch["input_ids"].tolist() == [[10, 11, 12, 20, 21, 99], [30, 31, 32, 33, 99, 99], [99] * 6]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0], [0] * 6]
    assert batch["trained"].astype(int).tolist() == [[0, 1, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0], [0] * 6]
