"""Intervals against published values and against simulation."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm, sem

from eval.stats import clustered, estimate, mean_interval, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 10), (81, 263), (500, 541)])
def test_wilson_matches_scipy(successes, n):
    want = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(successes, n), (want.low, want.high), atol=1e-12)


def test_wilson_matches_newcombe():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, score method without correction.
    np.testing.assert_allclose(wilson(81, 263), (0.2553, 0.3662), atol=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match=f"successes={successes} of n={n}"):
        wilson(successes, n)


def test_clusters_that_agree_inside_count_once():
    rng = np.random.default_rng(0)
    answers = rng.random(400) < 0.6
    share, low, high = clustered([[answer] * 3 for answer in answers.tolist()])
    assert share == answers.mean()
    # Three copies of each answer know no more than one; n - 1 against n is the difference left.
    np.testing.assert_allclose((low, high), wilson(answers.sum(), 400), atol=2e-4)


def test_independent_trials_keep_their_number():
    rng = np.random.default_rng(1)
    clusters = [(rng.random(rng.integers(1, 4)) < 0.3).tolist() for _ in range(3000)]
    n = sum(map(len, clusters))
    share, low, high = clustered(clusters)
    want = wilson(share * n, n)
    assert (high - low) / (want[1] - want[0]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("answer", [True, False])
def test_unanimous_clusters_keep_a_width(answer):
    share, low, high = clustered([[answer] * 2] * 20)
    assert share == answer
    np.testing.assert_allclose((low, high), wilson(20.0 * answer, 20))


def test_one_cluster_counts_as_one_trial():
    share, low, high = clustered([[True, False]])
    assert share == 0.5
    np.testing.assert_allclose((low, high), wilson(0.5, 1))


@pytest.mark.parametrize("clusters", [[], [[True], []]])
def test_clusters_need_trials(clusters):
    with pytest.raises(ValueError, match="each needs at least one trial"):
        clustered(clusters)


def test_the_interval_covers_the_truth():
    """The share of prompts' instructions, where those of one prompt hang together, is covered about 95 times in 100."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        # Each prompt has its own rate: 0.2 or 0.9, so 0.55 on average over equally sized prompts.
        rates = rng.choice([0.2, 0.9], 150)
        _, low, high = clustered([(rng.random(3) < rate).tolist() for rate in rates])
        hits += low <= 0.55 <= high
    # Four standard errors of 400 trials at 0.95.
    assert hits / 400 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 400))


def test_single_trials_get_wilson():
    documents = [[[1.0]], [[0.0]], [[1.0]]]
    assert estimate(documents) == (2 / 3, *wilson(2, 3))


def test_several_trials_a_sample_are_clustered():
    assert estimate([[[1.0, 0.0]], [[1.0]], [[0.0, 0.0, 1.0]]]) == clustered([[1, 0], [1], [0, 0, 1]])


def test_equally_many_samples_a_document_are_clustered():
    got = estimate([[[1.0], [0.0]], [[1.0], [1.0]], [[0.0], [0.0]]])
    assert got == pytest.approx(clustered([[1, 0], [1, 1], [0, 0]]))


def test_a_document_with_more_samples_weighs_no_more():
    value, low, high = estimate([[[1.0]] * 9, [[0.0]]])
    assert value == 0.5 and low < 0.5 < high


def test_samples_that_all_agree_keep_a_width():
    value, low, high = estimate([[[1.0]] * 3] * 20)
    assert value == 1.0
    np.testing.assert_allclose((low, high), wilson(20, 20))


def test_other_numbers_are_averaged_by_sample_then_by_document():
    value, low, high = estimate([[[1.0, 3.0], [4.0]], [[7.0]]])
    assert (value, low, high) == mean_interval([3.0, 7.0])
    assert value == 5.0


def test_the_mean_interval_matches_scipy():
    values = np.random.default_rng(3).normal(5, 2, 50)
    want = norm.interval(0.95, loc=values.mean(), scale=sem(values))
    np.testing.assert_allclose(mean_interval(values), (values.mean(), *want))


def test_the_mean_interval_of_one_value_has_no_width_and_that_of_none_is_refused():
    assert mean_interval([2.5]) == (2.5, 2.5, 2.5)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
