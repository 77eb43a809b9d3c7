"""Every row once a pass, sources by their weights, and the same again for the same seed."""

import random

import numpy as np
import pytest

from train.data.order import PLACES, Mixture, ShuffledRows


def rows_of(groups=((40,), (0,)), *, window_bytes=100, seed=(0, 0)):
    return ShuffledRows(*groups, window_bytes=window_bytes, seed=seed)


GROUPS = {
    "one group": ((40,), (0,)),
    "row groups": ((7, 1, 12, 9, 11), (60, 10, 250, 90, 40)),
    "an empty row group": ((7, 0, 0, 33), (60, 0, 500, 90)),
    "JSONL and row groups": ((25, 5, 5, 5), (0, 60, 60, 60)),
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_each_pass_holds_every_row_once_in_an_order_of_its_own(groups):
    rows = rows_of(groups)
    passes = [[rows[40 * number + place] for place in range(40)] for number in range(3)]
    for order in passes:
        assert sorted(order) == [*range(40)]
        assert order != [*range(40)]
    assert len({tuple(order) for order in passes}) == 3


def test_the_order_is_a_pure_function_of_seed_and_position():
    want = [rows_of(GROUPS["row groups"])[place] for place in range(200)]
    again, places = rows_of(GROUPS["row groups"]), [*range(200)]
    random.Random(0).shuffle(places)
    assert {place: again[place] for place in places} == dict(enumerate(want))
    for seed in ((1, 0), (0, 1)):
        assert [rows_of(GROUPS["row groups"], seed=seed)[place] for place in range(200)] != want


def test_few_row_groups_are_in_use_at_a_time():
    # 50 groups of 20 rows and 10 bytes: windows of 3 groups.
    rows = rows_of(((20,) * 50, (10,) * 50), window_bytes=30)
    groups = np.array([rows[place] for place in range(1000)]) // 20
    changes = 0
    for start in range(0, 1000, 60):
        used = groups[start : start + 60]
        assert len(set(used)) <= 3
        changes += np.count_nonzero(used[1:] != used[:-1])
    assert changes > 500  # and within a window the rows are well mixed
    first = [set(groups[start : start + 60]) for start in range(0, 960, 60)]
    assert first != [set(range(3 * number, 3 * number + 3)) for number in range(16)]


@pytest.mark.parametrize("weights", [(1,), (3, 1), (0.2, 0.5, 0.3), (1e-4, 1)])
def test_shares_follow_the_weights(weights):
    mixture = Mixture([10] * len(weights), weights, seed=0)
    drawn = [mixture[position] for position in range(PLACES)]
    counts = np.bincount([source for source, _ in drawn], minlength=len(weights))
    np.testing.assert_allclose(counts / PLACES, np.array(weights) / sum(weights), atol=1 / PLACES)
    # Anywhere, no source is more than two documents ahead of its share or behind it.
    for source, count in enumerate(counts):
        so_far = np.cumsum([s == source for s, _ in drawn])
        np.testing.assert_allclose(so_far, np.arange(1, PLACES + 1) * count / PLACES, atol=2)


def test_draws_follow_one_another():
    mixture = Mixture([10, 20, 5], (0.5, 0.2, 0.3), seed=1)
    positions = [*range(PLACES - 500, PLACES + 500)]
    before = mixture.draws_before(positions[0])
    for position in positions:
        source, draw = mixture[position]
        assert draw == before[source]
        before[source] += 1
        assert mixture.draws_before(position + 1) == before


def test_neighbouring_places_do_not_keep_step_with_a_number_of_shards():
    mixture = Mixture([10, 10], (1, 1), seed=0)
    for shards in (2, 4, 8):
        share = np.mean([mixture[position][0] for position in range(0, 40_000, shards)])
        assert abs(share - 0.5) < 0.03


def test_an_epoch_ends_when_the_last_source_was_passed():
    assert Mixture([60], (2.5,), seed=0).epoch_length == 60
    mixture = Mixture([300, 10, 50], (1, 1, 1), seed=0)
    drawn = mixture.draws_before(mixture.epoch_length)
    assert drawn[0] == 300
    assert drawn[1] == pytest.approx(300, abs=2)
    assert mixture[mixture.epoch_length - 1] == (0, 299)


def test_a_weight_beyond_the_pattern_is_refused():
    with pytest.raises(ValueError, match=r"the weight 1e-07 in data.sources is too small .* one document in 65,536"):
        Mixture([10, 10], (1.0, 1e-7), seed=0)
