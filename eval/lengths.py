"""What the lengths of responses tell: their distribution, and the score that shorter budgets would have given."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.samples import Sample
from eval.tasks.base import CUT
from eval.trials import Trials


def lengths(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Returns the mean, percentiles and histogram of tokens a response; None where no sample has tokens.

    The bin between ``edges[i]`` and ``edges[i + 1]`` holds the responses from the first up to but without the second;
    the edges grow by the square root of two. ``cut`` counts the responses that were cut off, ``right`` and ``wrong``
    the others.
    """
    known = [sample for sample in samples if sample.get("num_tokens") is not None]
    if not known:
        return None
    tokens = np.array([sample["num_tokens"] for sample in known])
    kinds = np.array(["cut" if each["outcome"] in CUT else "right" if each["correct"] else "wrong" for each in known])
    edges = [0, *_steps(max(1, int(tokens.min())), int(tokens.max()) + 1)]
    percentiles = {f"p{percent}": float(np.percentile(tokens, percent)) for percent in (50, 90, 99)}
    histogram = {kind: np.histogram(tokens[kinds == kind], edges)[0].tolist() for kind in ("right", "wrong", "cut")}
    return {"mean": float(tokens.mean())} | percentiles | {"max": int(tokens.max()), "edges": edges} | histogram


def curve(samples: Sequence[Sample], trials: Trials, limit: int | None = None) -> list[dict[str, float]] | None:
    """Returns the score that each shorter budget of tokens would have given; None where a sample has no tokens.

    What a budget cuts counts 0, whatever the protocol: these are the values that ``cut_as_wrong`` has in real runs.

    Args:
      trials: of the metric, of these samples.
      limit: the budget of the run, which is the last one of the curve; by default the longest response.
    """
    if any(sample.get("num_tokens") is None for sample in samples):
        return None
    tokens = np.array([sample["num_tokens"] for sample in samples], dtype=np.float64)
    unfinished = [sample["outcome"] in (*CUT, "error") for sample in samples]
    return _curve(trials, np.where(unfinished, np.inf, tokens), limit or max(1, int(tokens.max())))


def thinking_curve(samples: Sequence[Sample], trials: Trials) -> list[dict[str, float]] | None:
    """Returns the score of the responses whose thought closed within each budget of thinking tokens.

    The answers after the thought keep their values. The last budget is the longest thought that closed. None where no
    thought is known to have closed.
    """
    needed = np.array([(sample.get("close_positions") or [np.inf])[0] for sample in samples], dtype=np.float64)
    if not np.isfinite(needed).any():
        return None
    return _curve(trials, needed, max(1, int(needed[np.isfinite(needed)].max())))


def score_at(trials: Trials, needed: np.ndarray, budget: int) -> dict[str, float]:
    """Returns the score where every sample that needs more than ``budget`` tokens counts 0."""
    value, low, high = trials.lost(needed > budget).estimate()
    return {"budget": budget, "value": value, "low": low, "high": high}


def _curve(trials: Trials, needed: np.ndarray, last: int) -> list[dict[str, float]]:
    finite = needed[np.isfinite(needed)]
    first = max(1, int(finite.min())) if len(finite) else 1
    budgets = sorted({*(step for step in _steps(min(first, last), last) if step < last), last})
    return [score_at(trials, needed, budget) for budget in budgets]


def _steps(low: int, high: int) -> list[int]:
    """Returns the rounded powers of the square root of two that enclose ``low`` and ``high``."""
    first, last = int(np.floor(2 * np.log2(low))), int(np.ceil(2 * np.log2(high)))
    return sorted({round(2 ** (power / 2)) for power in range(first, max(first, last) + 1)})
