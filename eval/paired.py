"""Two sets of answers to the same documents: whether they differ, by how much, and what would have been found."""

import math
from typing import NamedTuple

import numpy as np

from eval.stats import DRAWS, Z_95, Estimate, resampled_sums


class Flips(NamedTuple):
    """The shares of documents on which one of A and B is right and the other wrong."""

    only_a: float
    only_b: float

    @property
    def rate(self) -> float:
        """The share of documents that flip either way."""
        return self.only_a + self.only_b


def mcnemar(only_a: int, only_b: int) -> float:
    """Returns the exact two-sided p value of McNemar's test that A and B are equally often right.

    Only documents that one of the two gets right count; if neither is better, each falls to either side like a coin.
    The p value is the chance of a split at least as uneven. Because it is exact, it rejects true equality less often
    than the level says.

    Raises:
      ValueError: a count is negative.

    Source: McNemar (1947), Psychometrika 12, 153-157, with binomial in place of normal probabilities.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"only_a={only_a}, only_b={only_b}: counts of documents are not negative.")
    # Python's own integers never overflow.
    n, fewer, ways, tail = int(only_a + only_b), int(min(only_a, only_b)), 1, 0
    for k in range(fewer + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def paired_difference(a: np.ndarray, b: np.ndarray, *, draws: int = DRAWS) -> Estimate:
    """Returns the score of B less that of A on the same documents, with the percentiles of a paired bootstrap.

    Where documents have repeats there are two levels: a document's repeats are averaged, and documents are drawn. A
    document's mean carries the noise of its repeats already. Drawing the repeats anew too would count that noise twice
    and find too few differences. Equal arguments give equal intervals.

    Args:
      a, b: one row a document, [documents, 2], in the same order: the sum of its trials, and its weight.

    Raises:
      ValueError: there is no document, or A and B have not as many.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8, on nested data.
    """
    if a.shape != b.shape or not len(a):
        raise ValueError(f"{len(a)} documents of A and {len(b)} of B: give the same ones, at least one.")
    rows = np.concatenate([a, b], axis=1)
    sums = resampled_sums(rows, len(rows), draws, np.random.default_rng(0))
    value, differences = (
        each[..., 2] / each[..., 3] - each[..., 0] / each[..., 1] for each in (rows.sum(axis=0), sums)
    )
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(value), float(low), float(high)


def flips(a: np.ndarray, b: np.ndarray) -> Flips:
    """Returns how often one sample of A and one of B to the same document differ.

    Args:
      a, b: the share of each document's samples that are right; 0 or 1 without repeats.
    """
    return Flips(float(np.mean(a * (1 - b))), float(np.mean(b * (1 - a))))


def spread_by_chance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the standard deviation of the difference of two runs that differ in their seeds only.

    Such runs have the same expected value on every document, so that each squared difference is its own variance.

    Args:
      a, b: the mean of each document in the two runs.
    """
    return math.sqrt(float(np.square(a - b).sum())) / len(a)


def power(n: int, flip_rate: float, difference: float) -> float:
    """Returns the chance that a paired comparison finds a difference at the 5 % level.

    Args:
      n: documents.
      flip_rate: the share of documents on which A and B differ.
      difference: the true difference of the scores, at most ``flip_rate``.

    Raises:
      ValueError: an argument is out of its range.

    Source: Miettinen (1968), Biometrics 24, 339-352, the unconditional power of McNemar's test.
    """
    if n < 1 or not 0 < flip_rate <= 1 or abs(difference) > flip_rate:
        raise ValueError(
            f"n={n}, flip_rate={flip_rate}, difference={difference}: give n >= 1 and a difference of at most the flip "
            "rate, which is above 0 and at most 1."
        )
    spread = math.sqrt(max(flip_rate - difference**2, 1e-12))
    needed = Z_95 * math.sqrt(flip_rate)
    return sum(0.5 * math.erfc((needed - sign * difference * math.sqrt(n)) / spread / math.sqrt(2)) for sign in (1, -1))


def findable(n: int, flip_rate: float) -> float | None:
    """Returns the difference that is found 4 times in 5; None where even the largest would not be.

    Args:
      n: documents.
      flip_rate: the share of documents on which A and B differ.
    """
    if flip_rate <= 0 or power(n, flip_rate, flip_rate) < 0.8:
        return None
    low, high = 0.0, flip_rate
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if power(n, flip_rate, middle) >= 0.8 else (middle, high)
    return high
