"""What the experiment found: the table, and which of its claims hold."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from examples.distillation.arms import ARMS, DISTILLED, LONG, SHORT

COLUMNS = {
    "nll": "NLL of truth",
    "kl_teacher": "KL(t, s)",
    "kl_own": "KL(s, t), own",
    "accuracy_greedy": "greedy",
    "accuracy_sampled": "sampled",
    "entropy_own": "entropy, own",
    "length": "length",
    "truncated": "truncated",
}
"""Each figure of ``measure`` and what it is called in the table."""

# Quantiles of Student's t for an interval of 95 %, by the number of seeds.
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}

Figures = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By arm, then by figure: ``value``, ``low`` and ``high`` of one seed."""


def combine(seeds: Sequence[Figures]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the mean of each figure of each arm over seeds, with its 95 % interval.

    Every seed has its own data, initial weights and questions, so that the spread over seeds holds all of them, and the
    interval is Student's t. With one seed it is the interval over questions.
    """
    return {arm: {name: _interval([seed[arm][name] for seed in seeds]) for name in COLUMNS} for arm in seeds[0]}


def _interval(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    values = [each["value"] for each in found]
    if len(values) == 1:
        return {name: found[0][name] for name in ("value", "low", "high")}
    mean, half = _t_interval(values)
    return {"value": mean, "low": mean - half, "high": mean + half}


def _t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of some values and half the width of its interval."""
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, _T.get(count, 2.365) * math.sqrt(variance / count)


def claims(found: Figures, seeds: Sequence[Figures]) -> dict[str, dict[str, Any]]:
    """Returns whether each claim holds, and by which figures.

    Two arms differ if their intervals are apart. The difference within a seed, with its own interval, stands beside it:
    it is without what a seed does to all arms alike.
    """
    told = {}
    if "own" in found:
        for figure in ("kl_own", "kl_teacher", "nll"):
            name = f"{LONG['own']} has a lower {COLUMNS[figure]} than {LONG['stored_twice']}"
            told[name] = _compare(figure, "own", "stored_twice", found, seeds)
        return told
    for figure in ("nll", "kl_teacher"):
        for arm in DISTILLED:
            told[f"{SHORT[arm]} beats labels on {COLUMNS[figure]}"] = _compare(figure, arm, "labels", found, seeds)
    for arm in SHORT:
        if arm != "on_policy":
            name = f"on-policy has a lower {COLUMNS['kl_own']} than {SHORT[arm]}"
            told[name] = _compare("kl_own", "on_policy", arm, found, seeds)
    for figure in ("nll", "kl_teacher"):
        name = f"the shuffled teacher is worse than labels on {COLUMNS[figure]}"
        told[name] = _compare(figure, "labels", "shuffled", found, seeds)
    return told


def _compare(figure: str, low: str, high: str, found: Figures, seeds: Sequence[Figures]) -> dict[str, Any]:
    below, above = found[low][figure], found[high][figure]
    gaps = [seed[high][figure]["value"] - seed[low][figure]["value"] for seed in seeds]
    told: dict[str, Any] = {"holds": below["high"] < above["low"], "gap": sum(gaps) / len(gaps)}
    if len(gaps) > 1:
        mean, half = _t_interval(gaps)
        told |= {"gap_low": mean - half, "gap_high": mean + half}
    return told


def table(results: Mapping[str, Any]) -> str:
    """Lays out the results of ``run``: figures, costs, then claims."""
    rows, names = [["", *COLUMNS.values()]], ARMS[results["settings"]["kind"]]
    for arm, figures in results["arms"].items():
        rows.append([names.get(arm, arm), *(_cell(figures[name]) for name in COLUMNS)])
    floor = results["floor"]
    rows.append(["the truth", *(f"{floor[name]:.3f}" if name in floor else "" for name in COLUMNS)])
    costs = [["", "CPU seconds", "wall seconds", "teacher tokens"]]
    for arm, cost in results["costs"].items():
        costs.append(
            [names.get(arm, arm), *(f"{cost[key]:,.0f}" for key in ("cpu_seconds", "seconds", "teacher_tokens"))]
        )
    told = [f"{'yes' if claim['holds'] else 'NO ':<4}{name}{_gap(claim)}" for name, claim in results["claims"].items()]
    return "\n\n".join((_layout(rows), _layout(costs), "\n".join(told)))


def _cell(figure: Mapping[str, float]) -> str:
    half = (figure["high"] - figure["low"]) / 2
    return f"{figure['value']:.3f} ±{half:.3f}"


def _gap(claim: Mapping[str, Any]) -> str:
    if "gap_low" not in claim:
        return f" (by {claim['gap']:.4f})"
    return f" (by {claim['gap']:.4f}, within a seed {claim['gap_low']:.4f} to {claim['gap_high']:.4f})"


def _layout(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
