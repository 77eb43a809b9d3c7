"""How the trials of samples become a value with its interval."""

import numpy as np
import pytest

from eval.stats import clustered_counts, mean_interval, wilson
from eval.trials import trials_of


def trials(documents):
    """Returns the trials of one metric from, for each document, its samples with their trials."""
    samples = [
        {"id": number, "metrics": {"m": values}} for number, document in enumerate(documents) for values in document
    ]
    return trials_of(samples)["m"]


def test_single_trials_get_wilson():
    assert trials([[[1.0]], [[0.0]], [[1.0]]]).estimate() == (2 / 3, *wilson(2, 3))


def test_several_trials_a_sample_are_clustered():
    got = trials([[[1.0, 0.0]], [[1.0]], [[0.0, 0.0, 1.0]]]).estimate()
    assert got == clustered_counts([1, 1, 1], [2, 1, 3])


def test_equally_many_samples_a_document_are_clustered():
    got = trials([[[1.0], [0.0]], [[1.0], [1.0]], [[0.0], [0.0]]]).estimate()
    assert got == pytest.approx(clustered_counts([1, 2, 0], [2, 2, 2]))


def test_a_document_with_more_samples_weighs_no_more():
    value, low, high = trials([[[1.0]] * 9, [[0.0]]]).estimate()
    assert value == 0.5 and low < 0.5 < high


def test_samples_that_all_agree_keep_a_width():
    value, low, high = trials([[[1.0]] * 3] * 20).estimate()
    assert value == 1.0
    np.testing.assert_allclose((low, high), wilson(20, 20))


def test_other_numbers_are_averaged_by_sample_then_by_document():
    got = trials([[[1.0, 3.0], [4.0]], [[7.0]]]).estimate()
    assert got == mean_interval([3.0, 7.0]) and got[0] == 5.0


def test_the_interval_of_values_within_0_and_1_stays_within():
    assert mean_interval([0.0, 0.25, 1.0])[1] < 0
    value, low, high = trials([[[0.0]], [[0.25]], [[1.0]]]).estimate()
    assert value == 1.25 / 3 and low == 0.0 and 0.9 < high <= 1.0


def test_repeats_of_one_document_are_no_independent_documents():
    rng = np.random.default_rng(0)
    right = rng.random(50) < 0.6
    once = trials([[[float(each)]] for each in right]).estimate()
    tenfold = trials([[[float(each)]] * 10 for each in right]).estimate()
    assert tenfold[0] == pytest.approx(once[0])
    # Ten equal answers know no more than one; n - 1 against n is the difference left.
    np.testing.assert_allclose(tenfold[1:], once[1:], atol=5e-3)


def test_samples_are_kept_and_lost_by_their_place_among_all():
    samples = [{"id": n, "metrics": {"m": [1.0]} if n % 2 else {"other": [0.5]}} for n in range(6)]
    found = trials_of(samples)["m"]
    wanted = np.array([True, True, False, False, True, True])
    assert found.only(wanted).place.tolist() == [1, 5]
    assert found.lost(wanted).total.tolist() == [0, 1, 0]
    assert found.total.tolist() == [1, 1, 1]


def test_no_trials_are_refused():
    found = trials([[[1.0]]])
    with pytest.raises(ValueError, match="no trials"):
        found.only(np.array([False])).estimate()


def test_documents_keep_the_numbers_that_are_known():
    found = trials_of([{"id": 7, "metrics": {"m": [1.0]}}], {"5": 0, "7": 1})["m"]
    assert found.document.tolist() == [1]
