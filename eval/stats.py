"""Values with confidence intervals, 95 % and two-sided: shares, means, pass@k, and means over groups."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

Z_95 = 1.959963984540054
DRAWS = 10_000

INTERVALS = (
    "95 %, over the drawing of questions: Wilson score; where a document has several trials (instructions, repeats), "
    "Wilson with the effective number of trials from the variance between documents; for values other than 0 and 1, "
    "the mean over documents with the normal approximation of its error. The clustered interval draws whole groups "
    f"instead of questions; that of the mean over groups is a bootstrap within each group ({DRAWS:,} draws, fixed seed)"
)

Estimate = tuple[float, float, float]
"""A value, and the low and the high end of its interval."""


def wilson(successes: float, n: float, *, quantile: float = Z_95) -> tuple[float, float]:
    """Returns the Wilson score interval of ``successes`` out of ``n`` independent trials.

    Unlike the normal approximation it stays inside [0, 1] and keeps a width at 0 % and 100 %.
    Neither argument need be a whole number, so that ``n`` may be an effective sample size.

    Args:
      quantile: how many standard errors the interval reaches to each side.

    Raises:
      ValueError: ``n`` is not positive, or ``successes`` is not within 0 and ``n``.

    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209-212.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes} of n={n}: an interval needs n > 0 and 0 <= successes <= n.")
    p = successes / n
    denominator = 1 + quantile**2 / n
    centre = (p + quantile**2 / (2 * n)) / denominator
    half = quantile * math.sqrt(p * (1 - p) / n + quantile**2 / (4 * n**2)) / denominator
    # At 0 % and 100 % one end is exact; rounding must not move it past the value.
    return (0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half))


def clustered_counts(
    hits: Sequence[float] | np.ndarray, sizes: Sequence[float] | np.ndarray, *, trials: float | None = None,
    few: bool = False,
) -> Estimate:  # fmt: skip
    """Returns a share, with an interval that lets the trials of one cluster depend on each other.

    The instructions of one prompt are answered by one text, so they are not independent. The
    variance of the share is that of a ratio estimator over clusters; dividing the binomial variance
    by it gives the effective number of trials (never more than there are), which goes into
    ``wilson``. Where all trials agree the variance says nothing, and every cluster counts once.

    Args:
      hits: the sum of each cluster's trials.
      sizes: how much each cluster weighs; the number of its trials, or 1 with the mean as its hits.
      trials: how many trials there are, if that is not the sum of ``sizes``.
      few: whether the clusters are so few that their variance is uncertain. Student's distribution then takes the
        place of the normal one.

    Raises:
      ValueError: there is no cluster, or an empty one.

    Source: the linearised ratio variance of cluster sampling (Cochran, Sampling Techniques, 1977,
    section 9A.2 and 11.11) with the effective sample size of Korn and Graubard (1998).
    """
    size, hit = np.asarray(sizes, dtype=np.float64), np.asarray(hits, dtype=np.float64)
    if not len(size) or not size.all():
        raise ValueError(f"{len(size)} clusters with sizes {size.tolist()}: each needs at least one trial.")
    num_clusters, n = len(size), float(size.sum())
    # The mean of equal means may pass 1 by rounding.
    share = min(1.0, float(hit.sum()) / n)
    binomial = share * (1 - share) / n
    variance = 0.0
    if num_clusters > 1:
        variance = num_clusters / (num_clusters - 1) * float(np.square(hit - share * size).sum()) / n**2
    most = n if trials is None else trials
    effective = min(most, binomial / variance * n) if variance > 0 and binomial > 0 else float(num_clusters)
    quantile = float(stdtrit(num_clusters - 1, 0.975)) if few and num_clusters > 1 else Z_95
    return share, *wilson(share * effective, effective, quantile=quantile)


def mean_interval(values: Sequence[float] | np.ndarray) -> Estimate:
    """Returns the mean of independent values and its interval by the normal approximation.

    The interval is the mean plus and minus 1.96 standard errors, so it holds for many documents; one that is far from
    the others makes it unreliable. One value alone says nothing about the spread, and the interval has no width.

    Raises:
      ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("there are no values to average; give at least one.")
    mean = float(np.mean(values))
    half = Z_95 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, mean - half, mean + half


def pass_at(right: Sequence[int] | np.ndarray, repeats: Sequence[int] | np.ndarray) -> dict[int, Estimate]:
    """Returns for every k the chance that at least one of k samples of a document is right, averaged over documents.

    The chance is that of k samples drawn without replacement from those that there are, which has no bias. It is told
    for all k up to the fewest samples that a document has.

    Args:
      right: how many samples of each document are right.
      repeats: how many samples each document has.

    Raises:
      ValueError: there is no document, or one has more right samples than samples.

    Source: Chen et al. (2021), arXiv:2107.03374, equation 1.
    """
    hits, n = np.asarray(right, dtype=np.int64), np.asarray(repeats, dtype=np.int64)
    if not len(n) or n.min() < 1 or (hits < 0).any() or (hits > n).any():
        raise ValueError(f"right={hits.tolist()} of repeats={n.tolist()}: give documents with 0 <= right <= repeats.")
    missed = np.ones(len(n))
    estimates = {}
    for k in range(1, int(n.min()) + 1):
        missed = missed * np.maximum(n - hits - k + 1, 0) / (n - k + 1)
        estimates[k] = clustered_counts(1 - missed, np.ones(len(n)), trials=float(n.sum()))
    return estimates


def macro_mean(groups: Sequence[np.ndarray], *, draws: int = DRAWS) -> Estimate:
    """Returns the mean over groups of each group's share, with the percentiles of a bootstrap within every group.

    Every group counts the same, however many documents it has. One document fewer is drawn than a group has, which
    makes the variance of a drawn mean equal to that of the mean itself; that matters for groups of 20 documents. A
    group of one document says nothing about its spread and stays as it is. Where no group has any spread the interval
    is that of all documents together. Equal arguments give equal intervals.

    Args:
      groups: for each group one row a document, [documents, 2]: the sum of its trials, and its weight.

    Raises:
      ValueError: there is no group, or an empty one.

    Source: Rao and Wu (1988), J. Am. Stat. Assoc. 83, 231-241.
    """
    if not groups or not all(map(len, groups)):
        raise ValueError(f"groups of {[len(rows) for rows in groups]} documents: each needs at least one.")
    rng = np.random.default_rng(0)
    value = float(np.mean([rows[:, 0].sum() / rows[:, 1].sum() for rows in groups]))
    means = np.zeros(draws)
    for rows in groups:
        sums = resampled_sums(rows, len(rows) - 1, draws, rng) if len(rows) > 1 else rows
        means += sums[:, 0] / sums[:, 1] / len(groups)
    if np.ptp(means) > 0:
        low, high = np.quantile(means, (0.025, 0.975))
        return value, float(low), float(high)
    together = np.concatenate(groups)
    if not 0 <= value <= 1:
        return mean_interval(together[:, 0])
    return value, *clustered_counts(together[:, 0], together[:, 1])[1:]


def resampled_sums(rows: np.ndarray, size: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the sums of ``size`` rows drawn with replacement, ``draws`` times, [draws, columns].

    Rows of right and wrong answers take few different values. How often each is drawn follows a multinomial
    distribution, so that tens of thousands of rows cost no more than hundreds.
    """
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    if 16 * len(distinct) < size:
        return rng.multinomial(size, counts / len(rows), size=draws) @ distinct
    sums = np.empty((draws, rows.shape[1]))
    at_once = max(1, 2_000_000 // size)
    for start in range(0, draws, at_once):
        part = sums[start : start + at_once]
        part[:] = rows[rng.integers(len(rows), size=(len(part), size))].sum(axis=1)
    return sums
