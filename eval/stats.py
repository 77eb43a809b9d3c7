"""Confidence intervals of proportions, 95 % and two-sided."""

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054


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


def clustered(clusters: Sequence[Sequence[bool]]) -> tuple[float, float, float]:
    """Returns the share of true trials and its interval when trials of one cluster hang together.

    The instructions of one prompt are answered by one text, so they are not independent. The
    variance of the share is that of a ratio estimator over clusters; dividing the binomial variance
    by it gives the effective number of trials (never more than there are), which goes into
    `wilson`. Where all trials agree the variance says nothing, and every cluster counts once.

    Args:
      clusters: the trials of each cluster; none may be empty.

    Returns:
      The share, and the two ends of its interval.

    Raises:
      ValueError: there is no cluster, or an empty one.

    Source: the linearised ratio variance of cluster sampling (Cochran, Sampling Techniques, 1977,
    section 9A.2 and 11.11) with the effective sample size of Korn and Graubard (1998).
    """
    sizes = np.array([len(cluster) for cluster in clusters], dtype=np.float64)
    if not len(sizes) or not sizes.all():
        raise ValueError(f"{len(sizes)} clusters with sizes {sizes.tolist()}: each needs at least one trial.")
    hits = np.array([sum(cluster) for cluster in clusters], dtype=np.float64)
    num_clusters, n = len(sizes), sizes.sum()
    share = hits.sum() / n
    binomial = share * (1 - share) / n
    variance = 0.0
    if num_clusters > 1:
        variance = num_clusters / (num_clusters - 1) * np.square(hits - share * sizes).sum() / n**2
    effective = min(n, binomial / variance * n) if variance > 0 and binomial > 0 else float(num_clusters)
    low, high = wilson(share * effective, effective)
    return float(share), float(low), float(high)
