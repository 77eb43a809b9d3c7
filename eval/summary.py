"""The figures of a task from its samples, and how a terminal shows them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eval.cells import UNKNOWN, columns, figure, first_of_data, settings_of, share, wrapped
from eval.lengths import curve, lengths, thinking_curve
from eval.samples import Sample
from eval.stats import clustered_counts, macro_mean, pass_at
from eval.tasks.base import CUT, OUTCOMES
from eval.trials import CIRCULAR, Trials, trials_of


def summarize(
    samples: Sequence[Sample], *, headline: str, macro: bool = False, max_new_tokens: int | None = None,
    thinking: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Returns the figures of a task; every metric is told with its interval and its number of documents.

    ``metrics`` are by the protocol's rule for responses that were cut off. ``cut`` is the share of these; in
    ``cut_as_wrong`` each of them counts 0, and ``finished`` leaves out all that did not end by themselves. Of the
    headline metric there are besides:

    - ``groups``: each subject.
    - ``clustered``: the interval for questions of other subjects of the same kind, which takes each subject for one
      draw. The intervals of ``metrics`` are for other questions of the same subjects, as published figures are
      compared; use the clustered one where the documents of a group share a text or a picture.
    - ``macro``: the mean over subjects.
    - ``judge``: how many responses a judge was asked about and has read, by its name, and what the rules alone give.
    - ``pass_at``: with repeats, the chance that one of k samples is right.
    - ``curve``, ``thinking_curve``: the score of smaller budgets.

    Args:
      samples: stored samples of one task, whole or light; at least one.
      headline: the metric that is compared with published figures.
      macro: whether the mean over groups is told.
      max_new_tokens: the longest response that was allowed.
      thinking: whether the prompts opened a think block.

    Raises:
      ValueError: there are no samples, or none has the headline metric.
    """
    trials = _checked_trials(samples, headline)
    outcomes = Counter(sample["outcome"] for sample in samples)
    cut = np.array([sample["outcome"] in CUT for sample in samples])
    ended = ~cut & np.array([sample["outcome"] != "error" for sample in samples])
    summary: dict[str, Any] = {
        "n": len({str(sample["id"]) for sample in samples}),
        "samples": len(samples),
        "headline": headline,
        "metrics": {name: _figure(each) for name, each in trials.items()},
        "cut": _cut(samples, cut),
        "cut_as_wrong": {name: _figure(each.lost(cut)) for name, each in trials.items()},
        "finished": {
            name: _figure(kept) for name, each in trials.items() if len((kept := each.only(~each.any_of(~ended))).place)
        },
        "outcomes": {outcome: outcomes[outcome] for outcome in OUTCOMES},
        "multiple_closes": sum(bool(sample.get("multiple_closes")) for sample in samples),
        "closed_by_budget": sum(bool(sample.get("closed_by_budget")) for sample in samples),
    }
    optional = _of_groups(samples, trials[headline], macro) | {
        "judge": _judge(samples, headline),
        "pass_at": _pass_at(trials[headline]),
        "lengths": lengths(samples),
        "curve": curve(samples, trials[headline], max_new_tokens),
        "thinking_curve": thinking_curve(samples, trials[headline]) if thinking else None,
    }
    return summary | {name: figures for name, figures in optional.items() if figures}


def _checked_trials(samples: Sequence[Sample], headline: str) -> dict[str, Trials]:
    """Returns the trials by metric; raises ``ValueError`` if the headline is not one of them."""
    if not samples:
        raise ValueError("there are no samples to summarize; give at least one.")
    trials = trials_of(samples)
    if headline not in trials and headline == CIRCULAR:
        raise ValueError("no question has a response to every order of its options; give them all.")
    if headline not in trials:
        raise ValueError(f"no sample has the headline metric {headline!r}; the metrics are {sorted(trials)}.")
    return trials


def _figure(trials: Trials) -> dict[str, Any]:
    value, low, high = trials.estimate()
    return {"value": value, "low": low, "high": high, "n": len(np.unique(trials.document))}


def _cut(samples: Sequence[Sample], cut: np.ndarray) -> dict[str, Any]:
    """Returns the share of samples that were cut off, and of how many it is not known whether they were."""
    shares = [{"id": own["id"], "metrics": {"cut": [float(each)]}} for own, each in zip(samples, cut, strict=True)]
    unknown = sum(sample.get("finish_reason") is None for sample in samples)
    return {"count": int(cut.sum())} | _figure(trials_of(shares)["cut"]) | {"unknown": unknown}


def _of_groups(samples: Sequence[Sample], trials: Trials, macro: bool) -> dict[str, Any]:
    """Returns the headline by subject, and what is told of all subjects together."""
    names = [sample["group"] for sample in samples]
    known = [name for name in dict.fromkeys(names) if name is not None]
    if not known:
        return {}
    numbers = {name: number for number, name in enumerate(known)}
    members = np.array([numbers.get(name, -1) for name in names])
    own = {name: trials.only(members == number) for name, number in numbers.items()}
    own = {name: each for name, each in own.items() if len(each.place)}
    figures: dict[str, Any] = {"groups": {name: _figure(each) for name, each in own.items()}}
    rows = [each.documents()[1] for each in own.values()]
    told = {"n": sum(map(len, rows)), "groups": len(rows)}
    if macro and rows:
        figures["macro"] = dict(zip(("value", "low", "high"), macro_mean(rows), strict=True)) | told
    if len(rows) > 1 and trials.binary:
        sums = np.array([each.sum(axis=0) for each in rows])
        most = float(sum(each.count.sum() for each in own.values()))
        estimate = clustered_counts(sums[:, 0], sums[:, 1], trials=most, few=True)
        figures["clustered"] = dict(zip(("value", "low", "high"), estimate, strict=True)) | told
    return figures


def _judge(samples: Sequence[Sample], headline: str) -> dict[str, Any] | None:
    """Returns the part that judges had in a result; None where none was asked."""
    asked = Counter(sample["judge"] for sample in samples if sample.get("judge"))
    if not asked:
        return None
    read = sum(sample.get("extraction") is not None for sample in samples)
    by_rule = trials_of([{**sample, **sample.get("by_rule", {})} for sample in samples])[headline]
    return {"asked": dict(asked), "read": read, "share": read / len(samples), "without": _figure(by_rule)}


def _pass_at(trials: Trials) -> dict[str, Any] | None:
    """Returns pass@k of a metric of right and wrong; None without repeats."""
    if not (trials.binary and trials.single) or len(trials.place) == len(np.unique(trials.document)):
        return None
    place = np.unique(trials.document, return_inverse=True)[1]
    estimates = pass_at(np.bincount(place, trials.total).astype(np.int64), np.bincount(place))
    return {str(k): {"value": value, "low": low, "high": high} for k, (value, low, high) in estimates.items()}


def table(results: Mapping[str, Any]) -> str:
    """Returns the figures as lines of a terminal; every row says how its number came about."""
    header = ("task", "metric", "value", "95 % interval", "n", "cut", "protocol", "mode", "sampling", "budget")
    rows, notes = [], []
    for task, summary in results["tasks"].items():
        cut = _cut_cell(results, summary)
        for name, metric in _rows(summary):
            n = metric.get("n", summary["n"])
            rows.append((task, name, *figure(metric), f"{n:,}", cut, *settings_of(results, summary)))
        counts = ", ".join(f"{name} {count:,}" for name, count in summary["outcomes"].items() if count)
        missing = f", {summary['missing']:,} left out without a response" if summary.get("missing") else ""
        documents = f"{summary['n']:,} documents{first_of_data(results, summary)}{missing}"
        notes += wrapped(f"{task}: {summary['samples']:,} samples of {documents}; {counts}")
        if (summary.get("sampling") or {}).get("detect_loops"):
            notes += wrapped(f"{task}: responses that repeated themselves were ended (--detect-loops)")
        if judge := summary.get("judge"):
            notes += wrapped(f"{task}: {judge_words(summary)}; by rules alone {figure(judge['without'])[0]}")
        if card := summary.get("card"):
            size, published, difference = card["size"], 100 * card["published"], 100 * card["difference"]
            notes += wrapped(f"{task}: {difference:+.2f} from the {published:.1f} of {size}'s card: {card['note']}")
    labels = [line for label in results.get("labels") or () for line in wrapped(label)]
    return "\n".join([*columns(header, rows, left=(0, 1, 6, 7, 8)), *notes, *labels])


def judge_words(summary: Mapping[str, Any]) -> str:
    """Returns which part judges had in a result."""
    judge, asked = summary["judge"], dict(summary["judge"]["asked"])
    stored = asked.pop("stored", 0)
    names = [*(["an extraction stored beside it"] if stored else []), *asked]
    words = (
        f"of {judge['read']:,} of {summary['samples']:,} responses ({share(judge['share'])}) the answer was read by "
    )
    words += f"{', '.join(names)} in place of a rule"
    return words + (f" ({sum(asked.values()):,} were asked about)" if asked else "")


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    headline, cut = summary["headline"], summary["cut"]["count"]
    for name, metric in summary["metrics"].items():
        yield name, metric
        if name != headline:
            continue
        if cut and not summary.get("cut_is_wrong"):
            yield "  cut as wrong", summary["cut_as_wrong"][name]
        if cut and name in summary["finished"]:
            yield "  finished only", summary["finished"][name]
        if "macro" in summary:
            mark = ", the headline" if summary.get("headline_macro") else ""
            yield f"  mean of {summary['macro']['groups']} groups{mark}", summary["macro"]
        if "clustered" in summary:
            yield "  clustered by group", summary["clustered"]
        for k, chance in summary.get("pass_at", {}).items():
            if k != "1":
                yield f"  pass@{k}", chance


def _cut_cell(results: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    if results.get("style") == "likelihood":
        return "none"
    return UNKNOWN if summary["cut"]["unknown"] == summary["samples"] else share(summary["cut"]["value"])
