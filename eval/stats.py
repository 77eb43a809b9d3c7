"""Values of metrics with confidence intervals, 95 % and two-sided."""

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054

INTERVALS = (
    "95 %: Wilson score; where a document has several trials (instructions, repeats), Wilson with the effective number "
    "of trials from the variance between documents; for values other than 0 and 1, the mean over documents with the "
    "normal approximation of its error"
)

Estimate = tuple[float, float, float]
"""A value, and the low and the high end of its interval."""


def estimate(documents: Sequence[Sequence[Sequence[float]]]) -> Estimate:
    """Returns the value of one metric with its interval, by the kind of its trials.

    - Trials of 0 and 1, one a document: the share of ones, with ``wilson``.
    - Trials of 0 and 1, several a document: the share, with ``clustered``. Where every sample is one trial, a
      document's samples are averaged first, so that a document with more samples weighs no more.
    - Other numbers: a sample's trials are averaged, then a document's samples; the mean of these, with
      ``mean_interval``.

    Args:
      documents: for each document its samples, and for each sample its trials; none empty.
    """
    samples = [trials for document in documents for trials in document]
    if any(value not in (0, 1) for trials in samples for value in trials):
        return mean_interval([float(np.mean([np.mean(trials) for trials in document])) for document in documents])
    if any(len(trials) > 1 for trials in samples):
        return clustered([[value for trials in document for value in trials] for document in documents])
    hits = [sum(trials[0] for trials in document) for document in documents]
    if len(samples) == len(documents):
        return sum(hits) / len(hits), *wilson(sum(hits), len(hits))
    means = [each / len(document) for each, document in zip(hits, documents, strict=True)]
    return clustered_counts(means, [1] * len(means), trials=len(samples))


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Returns the Wilson score interval of ``successes`` out of ``n`` independent trials.

    Unlike the normal approximation it stays inside [0, 1] and keeps a width at 0 % and 100 %.
    Neither argument need be a whole number, so that ``n`` may be an effective sample size.

    Raises:
      ValueError: ``n`` is not positive, or ``successes`` is not within 0 and ``n``.

    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209-212.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes} of n={n}: an interval needs n > 0 and 0 <= successes <= n.")
    p = successes / n
    denominator = 1 + Z_95**2 / n
    centre = (p + Z_95**2 / (2 * n)) / denominator
    half = Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2)) / denominator
    # At 0 % and 100 % one end is exact; rounding must not move it past the value.
    return (0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half))


def clustered(clusters: Sequence[Sequence[float]]) -> Estimate:
    """Returns the share of trials that are 1, with an interval that lets trials of one cluster depend on each other.

    Args:
      clusters: the trials of each cluster, 0 or 1; none may be empty.

    Raises:
      ValueError: there is no cluster, or an empty one.
    """
    return clustered_counts([sum(cluster) for cluster in clusters], [len(cluster) for cluster in clusters])


def clustered_counts(hits: Sequence[float], sizes: Sequence[float], *, trials: float | None = None) -> Estimate:
    """Returns what ``clustered`` does, from the counts of each cluster.

    The instructions of one prompt are answered by one text, so they are not independent. The
    variance of the share is that of a ratio estimator over clusters; dividing the binomial variance
    by it gives the effective number of trials (never more than there are), which goes into
    ``wilson``. Where all trials agree the variance says nothing, and every cluster counts once.

    Args:
      hits: the sum of each cluster's trials.
      sizes: how much each cluster weighs; the number of its trials, or 1 with the mean as its hits.
      trials: how many trials there are, if that is not the sum of ``sizes``.

    Raises:
      ValueError: there is no cluster, or an empty one.

    Source: the linearised ratio variance of cluster sampling (Cochran, Sampling Techniques, 1977,
    section 9A.2 and 11.11) with the effective sample size of Korn and Graubard (1998).
    """
    size, hit = np.array(sizes, dtype=np.float64), np.array(hits, dtype=np.float64)
    if not len(size) or not size.all():
        raise ValueError(f"{len(size)} clusters with sizes {size.tolist()}: each needs at least one trial.")
    num_clusters, n = len(size), size.sum()
    # The mean of equal means may pass 1 by rounding.
    share = min(1.0, hit.sum() / n)
    binomial = share * (1 - share) / n
    variance = 0.0
    if num_clusters > 1:
        variance = num_clusters / (num_clusters - 1) * np.square(hit - share * size).sum() / n**2
    most = n if trials is None else trials
    effective = min(most, binomial / variance * n) if variance > 0 and binomial > 0 else float(num_clusters)
    low, high = wilson(share * effective, effective)
    return float(share), float(low), float(high)


def mean_interval(values: Sequence[float]) -> Estimate:
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
