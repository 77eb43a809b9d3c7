"""Intervals against published values, against enumeration, and against simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm, sem, t

from eval.stats import clustered_counts, macro_mean, mean_interval, pass_at, resampled_sums, wilson


def tolerance(simulations, rate=0.95):
    """Returns four standard errors of a rate that was simulated so often."""
    return 4 * math.sqrt(rate * (1 - rate) / simulations)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 10), (81, 263), (500, 541)])
def test_wilson_matches_scipy(successes, n):
    want = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(successes, n), (want.low, want.high), atol=1e-12)


def test_wilson_matches_newcombe():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, score method without correction.
    np.testing.assert_allclose(wilson(81, 263), (0.2553, 0.3662), atol=5e-5)


def test_wilson_covers_the_truth_by_enumeration():
    n, counts = 541, np.arange(542)
    intervals = np.array([wilson(count, n) for count in counts])
    covered = [
        binom.pmf(counts[(intervals[:, 0] <= p) & (p <= intervals[:, 1])], n, p).sum() for p in (0.1, 0.304, 0.612, 0.9)
    ]
    # What is left is that counts are whole numbers: half a step at most, which is 2 % of the chance at this n.
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01) and min(covered) > 0.93


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match=f"successes={successes} of n={n}"):
        wilson(successes, n)


def counted(clusters):
    return clustered_counts([sum(cluster) for cluster in clusters], [len(cluster) for cluster in clusters])


def test_clusters_that_agree_inside_count_once():
    rng = np.random.default_rng(0)
    answers = rng.random(400) < 0.6
    share, low, high = counted([[answer] * 3 for answer in answers.tolist()])
    assert share == answers.mean()
    # Three copies of each answer know no more than one; n - 1 against n is the difference left.
    np.testing.assert_allclose((low, high), wilson(answers.sum(), 400), atol=2e-4)


def test_independent_trials_keep_their_number():
    rng = np.random.default_rng(1)
    clusters = [(rng.random(rng.integers(1, 4)) < 0.3).tolist() for _ in range(3000)]
    n = sum(map(len, clusters))
    share, low, high = counted(clusters)
    want = wilson(share * n, n)
    assert (high - low) / (want[1] - want[0]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("answer", [True, False])
def test_unanimous_clusters_keep_a_width(answer):
    share, low, high = counted([[answer] * 2] * 20)
    assert share == answer
    np.testing.assert_allclose((low, high), wilson(20.0 * answer, 20))


def test_one_cluster_counts_as_one_trial():
    assert counted([[True, False]]) == (0.5, *wilson(0.5, 1))


@pytest.mark.parametrize("clusters", [[], [[True], []]])
def test_clusters_need_trials(clusters):
    with pytest.raises(ValueError, match="each needs at least one trial"):
        counted(clusters)


def test_the_interval_covers_the_truth_where_instructions_of_a_prompt_hang_together():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        # Each prompt has its own rate: 0.2 or 0.9, so 0.55 on average over equally sized prompts.
        rates = rng.choice([0.2, 0.9], 150)
        _, low, high = clustered_counts(rng.binomial(3, rates), [3] * 150)
        covered += low <= 0.55 <= high
    assert covered / 400 == pytest.approx(0.95, abs=tolerance(400))


@pytest.mark.parametrize("subjects", [14, 57])
def test_the_interval_over_subjects_covers_what_other_subjects_would_score(subjects):
    rng = np.random.default_rng(3)
    simulations, covered, narrow = 1000, 0, 0
    for _ in range(simulations):
        rates = rng.beta(12, 8, subjects)
        hits = rng.binomial(100, rates)
        _, low, high = clustered_counts(hits, [100] * subjects, few=True)
        covered += low <= 0.6 <= high
        low, high = wilson(hits.sum(), 100 * subjects)
        narrow += low <= 0.6 <= high
    assert covered / simulations == pytest.approx(0.95, abs=tolerance(simulations))
    # What ignores that the questions of a subject hang together covers far less: the test can tell the two apart.
    assert narrow / simulations < 0.8


def test_few_clusters_take_student_and_an_unbiased_variance():
    hits, sizes = [1, 9, 5, 8], [10, 10, 10, 10]
    share, low, high = clustered_counts(hits, sizes, few=True)
    # The variance of a mean of four shares; it gives fewer effective trials than the 40 there are.
    effective = share * (1 - share) / (np.var(np.array(hits) / 10, ddof=1) / 4)
    assert effective < 40
    np.testing.assert_allclose((low, high), wilson(share * effective, effective, quantile=t.ppf(0.975, 3)))


def test_the_mean_interval_matches_scipy():
    values = np.random.default_rng(3).normal(5, 2, 50)
    want = norm.interval(0.95, loc=values.mean(), scale=sem(values))
    np.testing.assert_allclose(mean_interval(values), (values.mean(), *want))


def test_the_mean_interval_of_one_value_has_no_width_and_that_of_none_is_refused():
    assert mean_interval([2.5]) == (2.5, 2.5, 2.5)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_pass_at_k_equals_the_enumeration_of_all_subsets():
    rng = np.random.default_rng(4)
    answers = rng.random((30, 7)) < rng.random((30, 1))
    got = pass_at(answers.sum(axis=1), [7] * 30)
    assert list(got) == list(range(1, 8))
    for k, (value, low, high) in got.items():
        subsets = [answers[:, list(subset)].any(axis=1) for subset in itertools.combinations(range(7), k)]
        assert value == pytest.approx(np.mean(subsets), abs=1e-12)
        assert low <= value <= high


def test_pass_at_k_of_unequal_repeats_stops_at_the_fewest():
    answers = [[1, 0, 0], [0, 1], [0, 0, 0, 0]]
    got = pass_at([sum(own) for own in answers], [len(own) for own in answers])
    want = [
        np.mean([np.mean([any(subset) for subset in itertools.combinations(own, k)]) for own in answers])
        for k in (1, 2)
    ]
    np.testing.assert_allclose([got[k][0] for k in (1, 2)], want)
    assert list(got) == [1, 2]


def test_pass_at_k_covers_the_truth():
    rng = np.random.default_rng(5)
    simulations, covered = 500, np.zeros(8)
    # A document is failed with chance q ~ Beta(1.5, 1), so that k samples fail with the k-th moment of q.
    truth = [1 - np.prod([(1.5 + i) / (2.5 + i) for i in range(k)]) for k in range(1, 9)]
    for _ in range(simulations):
        got = pass_at(rng.binomial(8, 1 - rng.beta(1.5, 1, 200)), np.full(200, 8))
        covered += [got[k][1] <= truth[k - 1] <= got[k][2] for k in range(1, 9)]
    assert np.all(np.abs(covered / simulations - 0.95) < tolerance(simulations))


@pytest.mark.parametrize(("right", "repeats"), [([], []), ([2], [1]), ([-1], [1]), ([0, 0], [1, 0])])
def test_pass_at_k_refuses_impossible_counts(right, repeats):
    with pytest.raises(ValueError, match="give documents with 0 <= right <= repeats"):
        pass_at(right, repeats)


def rows(hits, sizes=None):
    hits = np.asarray(hits, dtype=np.float64)
    return np.stack([hits, np.ones(len(hits)) if sizes is None else np.asarray(sizes, dtype=np.float64)], axis=1)


def test_the_macro_mean_counts_every_group_the_same():
    value, low, high = macro_mean([rows([1] * 90 + [0] * 10), rows([0, 1])])
    assert value == pytest.approx(0.7)
    assert low < 0.7 < high
    assert macro_mean([rows([1] * 90 + [0] * 10), rows([0, 1])]) == (value, low, high)


def test_the_macro_mean_has_the_spread_of_a_stratified_sample():
    rng = np.random.default_rng(6)
    # In groups of five the variance would be a fifth too small if as many documents were drawn as there are.
    groups = [rows(rng.permutation([1, 1, 0, 1, 0])) for _ in range(20)] + [rows(rng.random(400) < 0.4)]
    _, low, high = macro_mean(groups)
    error = math.sqrt(sum(np.var(group[:, 0], ddof=1) / len(group) for group in groups)) / len(groups)
    # 10,000 draws place a 97.5 % point within about 3 % of a standard deviation.
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.05)


def test_the_macro_interval_covers_the_truth():
    rng = np.random.default_rng(7)
    # As many and as large as the subjects of C-Eval's validation set.
    sizes, rates = rng.integers(12, 40, 52), rng.beta(6, 2.2, 52)
    simulations, covered = 300, 0
    for _ in range(simulations):
        _, low, high = macro_mean([rows(rng.random(n) < p) for n, p in zip(sizes, rates, strict=True)], draws=400)
        covered += low <= rates.mean() <= high
    assert covered / simulations == pytest.approx(0.95, abs=tolerance(simulations))


def test_a_macro_mean_without_spread_keeps_a_width():
    value, low, high = macro_mean([rows([1] * 20), rows([1] * 30)])
    assert (value, high) == (1, 1) and low == wilson(50, 50)[0]
    assert macro_mean([rows([3.0]), rows([5.0])])[0] == 4
    for groups in ([], [rows([])]):
        with pytest.raises(ValueError, match="each needs at least one"):
            macro_mean(groups)


@pytest.mark.parametrize("distinct", [3, 300])
def test_drawn_sums_have_the_mean_and_variance_of_drawn_rows(distinct):
    rng = np.random.default_rng(8)
    values = rng.integers(0, distinct, 500) / distinct
    sums = resampled_sums(np.stack([values, np.ones(500)], axis=1), 500, 20_000, rng)
    assert sums.shape == (20_000, 2) and np.all(sums[:, 1] == 500)
    # Five standard errors of the mean and of the variance of 20,000 draws.
    assert sums[:, 0].mean() == pytest.approx(values.sum(), abs=5 * math.sqrt(500 * values.var() / 20_000))
    assert sums[:, 0].var() == pytest.approx(500 * values.var(), rel=5 * math.sqrt(2 / 20_000))
