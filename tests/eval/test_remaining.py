"""The estimate of how long a run still takes, on simulated runs."""

import heapq

import numpy as np
import pytest

from eval.remaining import survival, tokens_to_the_end

SLOTS, NUM_RESPONSES = 64, 541


def kaplan_meier(ended, censored, at):
    """The share of lengths beyond ``at``, by the definition."""
    share = 1.0
    for length in sorted(set(ended)):
        if length <= at:
            at_risk = sum(each >= length for each in [*ended, *censored])
            share *= 1 - ended.count(length) / at_risk
    return share


def test_the_curve_is_that_of_kaplan_and_meier():
    rng = np.random.default_rng(0)
    ended, censored = ([int(length) for length in rng.integers(1, 30, 40)] for _ in range(2))
    curve = survival([*ended, *censored[:20]], [False] * 40 + [True] * 20, censored[20:])
    want = [kaplan_meier(ended, censored, length) for length in curve.lengths]
    np.testing.assert_allclose(curve.longer, want, rtol=1e-12)


def test_draws_follow_the_curve_and_what_is_known_already():
    lengths = np.arange(1, 101)
    curve = survival(lengths, [False] * 100, [])
    rng = np.random.default_rng(0)
    drawn = curve.draw(np.zeros(20_000), np.full(20_000, 1000.0), rng)
    # Of 20,000 uniform lengths the mean has an error of 0.2.
    assert abs(drawn.mean() - 50.5) < 1 and set(drawn) <= set(lengths)
    later = curve.draw(np.full(20_000, 60.0), np.full(20_000, 90.0), rng)
    assert later.min() == 61 and later.max() == 90
    assert abs((later == 90).mean() - 11 / 40) < 0.02


@pytest.mark.parametrize("running", [[], [5.0] * 8])
def test_where_nothing_has_ended_a_draw_is_within_the_limit(running):
    curve = survival([], [], running)
    drawn = curve.draw(np.zeros(100), np.full(100, 50.0), np.random.default_rng(0))
    assert np.all((drawn >= 1) & (drawn <= 50))


def test_equal_lengths_leave_no_doubt():
    curve = survival([10] * 5, [False] * 5, [4.0] * 2)
    # Two slots have 6 tokens to go, and then responses of 10.
    assert tokens_to_the_end(curve, [4.0] * 2, [99] * 2, [], slots=2) == 6
    assert tokens_to_the_end(curve, [4.0] * 2, [99] * 2, [99] * 5, slots=2) == 6 + 3 * 10
    # Of many only the sum counts, so that the last may come out where it does not fit.
    assert abs(tokens_to_the_end(curve, [4.0] * 2, [99] * 2, [99] * 61, slots=2) - (6 + 31 * 10)) < 10


def run_of(lengths):
    """When the responses begin and end whose lengths are given, a token a slot at a time."""
    free, begins = [0.0] * SLOTS, []
    for length in lengths:
        begins.append(free[0])
        heapq.heapreplace(free, free[0] + length)
    return np.array(begins), np.array(begins) + lengths


def errors(share, *, median, sigma, limit, loops=0.0):
    """Relative errors of the estimate and of a mean-based one, once this share has finished, for twelve runs."""
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        natural = np.exp(rng.normal(np.log(median), sigma, NUM_RESPONSES)).astype(int) + 1
        natural[rng.uniform(size=NUM_RESPONSES) < loops] = 10 * limit
        lengths = np.minimum(natural, limit)
        begins, ends = run_of(lengths)
        now = np.sort(ends)[int(share * NUM_RESPONSES) - 1]
        done, waits = ends <= now, begins > now
        running = (now - begins)[~done & ~waits]
        curve = survival(lengths[done], (natural > limit)[done], running)
        left = tokens_to_the_end(curve, running, [limit] * len(running), [limit] * int(waits.sum()), SLOTS)
        by_mean = (NUM_RESPONSES - done.sum()) * lengths[done].mean() / SLOTS
        true = ends.max() - now
        found.append([left / true - 1, by_mean / true - 1])
    return np.abs(found).mean(axis=0)


# Measured, for the three shares: 0.06, 0.05, 0.04 (by the mean 0.49, 0.42, 0.51) for the first kind.
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ({"median": 2000, "sigma": 1.0, "limit": 8192}, 0.1),
        ({"median": 300, "sigma": 0.7, "limit": 1280}, 0.15),
        ({"median": 6000, "sigma": 1.2, "limit": 32_768}, 0.15),
        # The last response alone decides, and none as long has been seen.
        ({"median": 2000, "sigma": 1.0, "limit": 32_768}, 0.45),
        ({"median": 2000, "sigma": 0.8, "limit": 32_768, "loops": 0.05}, 0.45),
    ],
    ids=["often cut", "short", "long", "seldom cut", "loops"],
)
def test_the_time_left_is_told_far_better_than_by_the_mean(share, kind, most):
    estimate, by_mean = errors(share, **kind)
    assert estimate < most
    assert estimate < 0.65 * by_mean
