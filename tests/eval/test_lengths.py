"""Lengths of responses, and the score of shorter budgets."""

import itertools

import numpy as np
import pytest

from eval.lengths import curve, lengths, thinking_curve
from eval.trials import trials_of
from tests.eval.test_summary import sample

SAMPLES = [
    sample(0, 1, num_tokens=10, close_positions=[4]),
    sample(1, 1, num_tokens=100, close_positions=[90, 95]),
    sample(2, 0, num_tokens=50, close_positions=[20]),
    sample(3, 1, num_tokens=200, outcome="truncated", close_positions=[150]),
    sample(4, 0, num_tokens=200, outcome="loop", close_positions=[]),
]


def accuracy(samples):
    return trials_of(samples)["accuracy"]


def test_lengths_stand_in_the_bin_that_holds_them():
    told = lengths(SAMPLES)
    edges = np.array(told["edges"])
    assert (told["mean"], told["p50"], told["max"]) == (112, 100, 200)
    for kind, tokens in {"right": [10, 100], "wrong": [50], "cut": [200, 200]}.items():
        want = [sum(low <= each < high for each in tokens) for low, high in itertools.pairwise(edges)]
        assert told[kind] == want
    assert edges[0] == 0 and np.all(np.diff(edges) > 0) and edges[-1] > 200


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 6, 1023, 1024, 81_920])
def test_a_single_length_has_a_bin(tokens):
    told = lengths([sample(0, 1, num_tokens=tokens)])
    assert sum(told["right"]) == 1 and told["max"] == tokens
    place = told["right"].index(1)
    assert told["edges"][place] <= tokens < told["edges"][place + 1]


def test_nothing_is_told_without_tokens():
    assert lengths([sample(0, 1)]) is None
    some = [sample(0, 1), sample(1, 1, num_tokens=5)]
    assert curve(some, accuracy(some)) is None
    assert lengths(some)["max"] == 5
    assert thinking_curve(some, accuracy(some)) is None


def test_the_curve_counts_what_ended_within_the_budget():
    points = {point["budget"]: point["value"] for point in curve(SAMPLES, accuracy(SAMPLES), 200)}
    for budget, value in points.items():
        assert value == sum(budget >= length for length in (10, 100)) / 5
    # The whole budget is the score with every cut response wrong.
    assert max(points) == 200 and points[200] == 2 / 5
    assert min(points) <= 10 and len(points) > 5


def test_the_curve_ends_at_the_budget_of_the_run():
    assert curve(SAMPLES, accuracy(SAMPLES), 1000)[-1]["budget"] == 1000
    assert curve(SAMPLES, accuracy(SAMPLES))[-1]["budget"] == 200
    cut = [sample(0, 0, num_tokens=8, outcome="truncated")]
    assert [point["value"] for point in curve(cut, accuracy(cut), 8)] == [0] * len(curve(cut, accuracy(cut), 8))


def test_the_thinking_curve_counts_thoughts_that_closed_and_keeps_their_answers():
    points = {point["budget"]: point["value"] for point in thinking_curve(SAMPLES, accuracy(SAMPLES))}
    for budget, value in points.items():
        assert value == sum(budget >= close for close in (4, 90, 150)) / 5
    assert max(points) == 150 and points[150] == 3 / 5


def test_the_curve_has_the_intervals_of_repeated_samples():
    samples = [sample(n, 1, repeat=place, num_tokens=10 * n + 1) for n in range(20) for place in range(3)]
    last = curve(samples, accuracy(samples))[-1]
    value, low, high = accuracy(samples).estimate()
    assert (last["value"], last["low"], last["high"]) == (value, low, high)
