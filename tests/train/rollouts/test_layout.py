"""Rollouts always fit their sequences, and stand in a batch wherever the processes cut it."""

import numpy as np
import pytest

from train.config import DataConfig, VisionDataConfig
from train.data.masking import Example
from train.data.pictures import Picture
from train.rollouts.layout import are_rollouts, pack, shares
from train.rollouts.prompts import Prompt
from train.rollouts.rollout import Rollout, from_json, to_json


def rollout(position, number, prompt, answer, rng, patches=0):
    ids = rng.integers(0, 500, prompt + answer).astype(np.int32)
    shown = (Picture((1, 1, patches), pytest.fail, pytest.fail),) if patches else ()
    document = Example(ids[:prompt], np.zeros(prompt, bool), pictures=shown)
    return Rollout(Prompt(position, document), number, ids[prompt:], rng.normal(size=answer).astype(np.float32))


def tail(size, rng):
    made = rollout(0, 0, 1, size, rng)
    return made.answer, made.log_probs


@pytest.mark.parametrize("seed", range(20))
def test_as_many_documents_as_were_counted_fit_whatever_their_lengths(seed):
    rng = np.random.default_rng(seed)
    sequences, longest = int(rng.integers(1, 5)), int(rng.integers(2, 12))
    length = int(rng.integers(longest, 4 * longest))
    count = sequences * (length // longest)
    sizes = [longest if rng.random() < 0.5 else int(rng.integers(2, longest + 1)) for _ in range(count)]
    share = 256 // (length // longest)
    patches = [share if rng.random() < 0.5 else int(rng.integers(0, share + 1)) for _ in range(count)]
    vision = VisionDataConfig(max_pixels=64 * 64, video_max_pixels=8192, patches_per_sequence=256)
    data = DataConfig("x.jsonl", length, vision=vision)
    made = [rollout(i, 0, 1, size - 1, rng, shown) for i, (size, shown) in enumerate(zip(sizes, patches, strict=True))]
    packed = pack(made, sequences, data)
    assert len(packed) == sequences
    assert all(sum(len(example) for _, example in sequence) <= length for sequence in packed)
    assert all(sum(example.num_patches for _, example in sequence) <= 256 for sequence in packed)
    assert sorted(key[0] for sequence in packed for key, _ in sequence) == list(range(count))


@pytest.mark.parametrize(("count", "of"), [(8, 8), (4, 8), (6, 8), (1, 8), (5, 12)])
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_parts_of_a_batch_hold_every_sequence_once(count, of, cut):
    size = of // cut
    parts = [range(start, start + size) for start in range(0, of, size)]
    rollouts, others = zip(*(shares(count, of, part) for part in parts), strict=True)
    assert [n for part in rollouts for n in part] == list(range(count))
    assert [n for part in others for n in part] == list(range(of - count))
    marks = [are_rollouts(count, of, part) for part in parts]
    assert [mark.sum() for mark in marks] == [len(part) for part in rollouts]
    np.testing.assert_array_equal(np.concatenate(marks), are_rollouts(count, of, range(of)))


def test_what_a_checkpoint_holds_is_exact():
    rng = np.random.default_rng(0)
    rollouts = []
    for position, prompt in ((3, 5), (9, 2)):
        shared = rollout(position, 0, prompt, 1, rng).prompt
        rollouts += [Rollout(shared, n, *tail(size, rng)) for n, size in enumerate((1, 4, 7))]

    def prompt_of(position, token_ids):
        return Prompt(position, Example(token_ids, np.zeros(len(token_ids), bool)))

    again = from_json(to_json(rollouts), prompt_of)
    for one, other in zip(again, rollouts, strict=True):
        assert (one.prompt.position, one.number) == (other.prompt.position, other.number)
        kept = [(each.prompt.token_ids, each.answer, each.log_probs) for each in (one, other)]
        for got, want in zip(*kept, strict=True):
            np.testing.assert_array_equal(got, want)
            assert got.dtype == want.dtype
