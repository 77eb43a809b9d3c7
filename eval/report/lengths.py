"""How long the samples thought, told apart by how they ended."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from eval.samples import Sample
from eval.tasks.base import CUT


def kind_of(sample: Sample) -> str:
    """Returns ``"cut"``, ``"right"`` or ``"wrong"``."""
    if sample["outcome"] in CUT:
        return "cut"
    return "right" if sample["correct"] else "wrong"


def thinking_lengths(samples: Iterable[Sample], lengths: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the distribution of tokens before the first ``</think>``, in the form of ``lengths`` in results.json.

    A sample that never closed its thought counts with all its tokens.

    Args:
      samples: stored ones, without their tokens.
      lengths: the distribution of all tokens, whose bins are used.

    Returns:
      None where no sample is known to have closed a thought.
    """
    known = [each for each in samples if each.get("close_positions") is not None and each["num_tokens"] is not None]
    if lengths is None or not any(each["close_positions"] for each in known):
        return None
    counts = [each["close_positions"][0] if each["close_positions"] else each["num_tokens"] for each in known]
    kinds = np.array([kind_of(each) for each in known])
    tokens, edges = np.array(counts), lengths["edges"]
    p50, p90, p99 = (int(each) for each in np.percentile(tokens, (50, 90, 99), method="higher"))
    bins = {
        kind: np.histogram(np.clip(tokens[kinds == kind], edges[0], edges[-1]), edges)[0].tolist()
        for kind in ("right", "wrong", "cut")
    }
    return {
        "mean": float(tokens.mean()), "p50": p50, "p90": p90, "p99": p99, "max": int(tokens.max()), "edges": edges,
    } | bins  # fmt: skip
