"""The figures of a task from its samples, and how a terminal shows them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from eval.samples import Sample
from eval.stats import estimate
from eval.tasks.base import CUT, OUTCOMES


def summarize(samples: Sequence[Sample], *, headline: str, macro: bool) -> dict[str, Any]:
    """Returns the numbers of documents (``n``) and of samples, the metrics with their intervals, and the outcomes.

    Args:
      samples: stored samples of one task; at least one.
      headline: the metric that is compared with published figures.
      macro: whether the mean over groups is told too.
    """
    outcomes = Counter(sample["outcome"] for sample in samples)
    return {
        "n": len({str(sample["id"]) for sample in samples}),
        "samples": len(samples),
        "headline": headline,
        "metrics": _metrics(samples),
        "finished": _metrics([sample for sample in samples if sample["outcome"] not in CUT]),
        "outcomes": {outcome: outcomes[outcome] for outcome in OUTCOMES},
        "multiple_closes": sum(sample["multiple_closes"] > 0 for sample in samples),
    }


def _metrics(samples: Sequence[Sample]) -> dict[str, Any]:
    by_document: dict[str, list[Sample]] = {}
    for sample in samples:
        by_document.setdefault(str(sample["id"]), []).append(sample)
    metrics = {}
    for name in dict.fromkeys(name for sample in samples for name in sample["metrics"]):
        documents = [[each["metrics"][name] for each in own if name in each["metrics"]] for own in by_document.values()]
        documents = [document for document in documents if document]
        value, low, high = estimate(documents)
        metrics[name] = {"value": value, "low": low, "high": high, "n": len(documents)}
    return metrics


def table(results: Mapping[str, Any]) -> str:
    """Returns the metrics and outcomes as lines for a terminal."""
    lines = [f"{'task':<10} {'metric':<20} {'value':>7}   95 % interval      n"]
    for task, summary in results["tasks"].items():
        for name, metric in summary["metrics"].items():
            interval = f"[{metric['low']:.4f}, {metric['high']:.4f}]"
            lines.append(f"{task:<10} {name:<20} {metric['value']:>7.4f}   {interval}  {summary['n']:>5}")
        lines.append(f"{task:<10} " + ", ".join(f"{name} {count}" for name, count in summary["outcomes"].items()))
    return "\n".join(lines)
