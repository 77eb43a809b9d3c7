"""Paired comparisons against enumeration and on simulated pairs."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from eval.paired import findable, flips, mcnemar, paired_difference, power, spread_by_chance
from tests.eval.test_stats import rows, tolerance


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 5), (5, 0), (3, 3), (10, 21), (400, 460)])
def test_mcnemar_is_the_binomial_test_of_the_flips(only_a, only_b):
    n = only_a + only_b
    want = binomtest(only_a, n).pvalue if n else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(want, rel=1e-9)
    assert mcnemar(np.int64(only_a), np.int64(only_b)) == mcnemar(only_a, only_b)


def test_mcnemar_of_many_flips_neither_overflows_nor_vanishes():
    assert 0.04 < mcnemar(6_000, 6_216) < 0.06
    assert 0 <= mcnemar(0, 20_000) < 1e-300
    with pytest.raises(ValueError, match="not negative"):
        mcnemar(-1, 2)


def found_by_mcnemar(n, only_a, only_b):
    """Returns how often the exact test finds a difference, by enumeration of all numbers of flips."""
    total = 0.0
    for flipped in range(n + 1):
        chance = binom.pmf(flipped, n, only_a + only_b)
        if chance > 1e-10:
            found = [count for count in range(flipped + 1) if mcnemar(count, flipped - count) <= 0.05]
            total += chance * binom.pmf(found, flipped, only_a / (only_a + only_b)).sum()
    return total


def found_by_both(n, only_a, only_b, simulations, seed):
    """Returns how often bootstrap and exact test find a difference in simulated pairs of answers."""
    rng = np.random.default_rng(seed)
    found = np.zeros(2)
    for _ in range(simulations):
        first, second, _ = rng.multinomial(n, [only_a, only_b, 1 - only_a - only_b])
        a, b = np.zeros(n), np.zeros(n)
        a[:first] = b[first : first + second] = 1
        _, low, high = paired_difference(rows(a), rows(b), draws=1000)
        found += not low <= 0 <= high, mcnemar(first, second) <= 0.05
    return found / simulations


def test_false_positives_are_five_in_a_hundred():
    simulations = 1000
    by_bootstrap, by_test = found_by_both(400, 0.1, 0.1, simulations, seed=1)
    assert by_bootstrap == pytest.approx(0.05, abs=tolerance(simulations))
    # The exact test rejects less: flips are whole numbers.
    size = found_by_mcnemar(400, 0.1, 0.1)
    assert 0.03 < size < 0.05
    assert by_test == pytest.approx(size, abs=tolerance(simulations))


def test_power_is_as_computed():
    simulations = 600
    by_bootstrap, by_test = found_by_both(400, 0.06, 0.13, simulations, seed=2)
    exact = found_by_mcnemar(400, 0.06, 0.13)
    assert by_test == pytest.approx(exact, abs=tolerance(simulations, exact))
    # The formula is that of the normal approximation, as which the bootstrap acts; the exact test finds a little less.
    assert by_bootstrap == pytest.approx(power(400, 0.19, 0.07), abs=tolerance(simulations, exact))
    assert exact < power(400, 0.19, 0.07) < exact + 0.04


def test_power_of_no_difference_is_the_level():
    assert power(541, 0.2, 0.0) == pytest.approx(0.05)
    assert power(541, 0.2, -0.05) == pytest.approx(power(541, 0.2, 0.05))
    for wrong in ((0, 0.1, 0.05), (10, 0.1, 0.2), (10, 0.0, 0.0)):
        with pytest.raises(ValueError, match="give n >= 1"):
            power(*wrong)


def test_the_findable_difference_is_found_four_times_in_five():
    difference = findable(541, 0.18)
    assert power(541, 0.18, difference) == pytest.approx(0.8, abs=1e-3)
    assert findable(541, 0.0) is None and findable(8, 0.2) is None


def test_false_positives_of_repeated_samples_are_five_in_a_hundred():
    """Averaging first is right; drawing the repeats anew as well would count their noise twice."""
    rng = np.random.default_rng(3)
    simulations, n, repeats, found, doubled = 250, 150, 4, 0, 0
    for _ in range(simulations):
        rates = rng.beta(1.2, 0.8, n)
        a, b = (rng.binomial(repeats, rates) / repeats for _ in range(2))
        _, low, high = paired_difference(rows(a), rows(b), draws=500)
        found += not low <= 0 <= high
        drawn = rng.integers(n, size=(500, n))
        means = (rng.binomial(repeats, b[drawn]) - rng.binomial(repeats, a[drawn])).mean(axis=1) / repeats
        low, high = np.quantile(means, (0.025, 0.975))
        doubled += not low <= 0 <= high
    assert found / simulations == pytest.approx(0.05, abs=tolerance(simulations))
    assert doubled / simulations < 0.02


def test_the_difference_of_several_trials_is_that_of_the_shares():
    a, b = rows([1, 2, 0], [2, 3, 1]), rows([2, 1, 1], [2, 3, 1])
    value, low, high = paired_difference(a, b)
    assert value == pytest.approx(4 / 6 - 3 / 6)
    assert low <= value <= high
    assert paired_difference(a, b) == (value, low, high)
    assert paired_difference(b, a)[0] == pytest.approx(-value)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1, 0], [1])])
def test_pairs_need_the_same_documents(a, b):
    with pytest.raises(ValueError, match="give the same ones"):
        paired_difference(rows(a), rows(b))


def test_flips_of_single_answers_are_counted_and_of_repeats_expected():
    assert flips(np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 1, 0])) == (0.25, 0.25)
    found = flips(np.array([0.5]), np.array([0.25]))
    assert found == (0.375, 0.125) and found.rate == 0.5


def test_the_spread_by_chance_is_that_of_many_pairs_of_runs():
    rng = np.random.default_rng(4)
    rates = rng.beta(1.2, 0.8, 300)
    pairs = [[(rng.random(300) < rates).astype(float) for _ in range(2)] for _ in range(1000)]
    seen = np.std([b.mean() - a.mean() for a, b in pairs])
    told = np.mean([spread_by_chance(a, b) for a, b in pairs])
    # The standard deviation of 1,000 numbers has an error of 2.2 %.
    assert told == pytest.approx(seen, rel=4 / math.sqrt(2000))
