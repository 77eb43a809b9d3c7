"""Compares two evaluations document by document: ``python -m eval.compare DIR_A DIR_B``.

Both must have asked the same documents of the same tasks by the same protocol; models, modes and sampling may differ.
Told are both scores, their difference (B less A) with a paired bootstrap, McNemar's exact test, the documents that
flipped, and the difference that would have been found 4 times in 5. ``--noise DIR_C`` names further runs of the model
of A with other seeds: what they differ by is what chance alone does.
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from eval.cells import UNKNOWN, columns, is_share, settings_of, share, wrapped
from eval.paired import findable, flips, mcnemar, paired_difference, spread_by_chance
from eval.pairing import Pair, Run, check_noise, open_run, pair, shared_tasks
from eval.stats import DRAWS, Z_95
from eval.trials import Trials
from qwen35_jax.command import one_line_errors
from qwen35_jax.storage import write_json

_SHOWN = 10


def compare(directory_a: str, directory_b: str, *, noise: Sequence[str] = (), common: bool = False) -> dict[str, Any]:
    """Returns how B differs from A on every task that both have.

    Args:
      noise: runs of the model of A with other seeds.
      common: compare what two runs share, where they do not fit.

    Raises:
      ValueError: a directory is not usable, or the runs do not fit.
    """
    a, b = open_run(directory_a), open_run(directory_b)
    others = [open_run(directory) for directory in noise]
    tasks = shared_tasks(a, b, common=common)
    for other in others:
        shared_tasks(a, other, common=common)
        check_noise(a, other)
    compared: dict[str, Any] = {}
    for task in tasks:
        compared[task] = _figures(a, b, task, pair(a, b, task, common=common))
        again = [other for other in others if task in other.results["tasks"]]
        if again:
            compared[task]["noise"] = _noise([a, *again], task, common)
    return {
        "a": _about(a),
        "b": _about(b),
        "difference": f"B less A, 95 % by a paired bootstrap over documents ({DRAWS} draws, fixed seed)",
        "common": common,
        "tasks": compared,
    }


def _about(run: Run) -> dict[str, Any]:
    names = ("model", "adapter", "mode", "protocol", "style", "seed", "repeats", "thinking_budget", "labels", "code")
    return {"directory": run.directory} | {name: run.get(name) for name in names}


def _figures(a: Run, b: Run, task: str, both: Pair) -> dict[str, Any]:
    headline = a.results["tasks"][task]["headline"]
    if headline not in both.metrics:
        raise ValueError(f"{task}: {b.directory} has no metric {headline}; score both with the same version.")
    metrics = {name: _metric(*trials) for name, trials in both.metrics.items()}
    settings = {name: settings_of(run.results, run.results["tasks"][task]) for name, run in (("a", a), ("b", b))}
    figures = {
        "n": len(both.ids),
        "left_out": both.left_out,
        "headline": headline,
        "settings": settings,
        "cut": {"a": both.cut[0], "b": both.cut[1]},
        "metrics": {name: metric for name, metric in metrics.items() if metric is not None},
    }
    return figures | _flips(both, headline)


def _metric(a: Trials, b: Trials) -> dict[str, Any] | None:
    """Returns the figures of one metric on the documents where both have it; None where there is none."""
    rows_a, rows_b, shared = _matched(a, b)
    if not len(shared):
        return None
    here = [each.only(_members(each, shared)) for each in (a, b)]
    names = ("value", "low", "high")
    of_a, of_b = (dict(zip(names, each.estimate(), strict=True)) for each in here)
    difference = dict(zip(names, paired_difference(rows_a, rows_b), strict=True))
    return {"a": of_a, "b": of_b, "difference": difference, "n": len(shared)}


def _members(trials: Trials, documents: np.ndarray) -> np.ndarray:
    wanted = np.zeros(int(trials.place.max()) + 1, dtype=bool)
    wanted[trials.place[np.isin(trials.document, documents)]] = True
    return wanted


def _matched(a: Trials, b: Trials) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows of A and of B for the documents that have the metric in both, and these documents' numbers."""
    (numbers_a, rows_a), (numbers_b, rows_b) = a.documents(), b.documents()
    shared, place_a, place_b = np.intersect1d(numbers_a, numbers_b, assume_unique=True, return_indices=True)
    return rows_a[place_a], rows_b[place_b], shared


def _flips(both: Pair, headline: str) -> dict[str, Any]:
    """Returns what is told of a headline of right and wrong: flips with their documents, and McNemar's test."""
    trials = both.metrics[headline]
    if not all(each.binary and each.single for each in trials):
        return {}
    rows_a, rows_b, shared = _matched(*trials)
    a, b = rows_a[:, 0], rows_b[:, 0]
    found = flips(a, b)
    ids = np.array(both.ids, dtype=object)[shared]
    named = {"a": ids[(a > 0.5) & (b < 0.5)].tolist(), "b": ids[(a < 0.5) & (b > 0.5)].tolist()}
    told: dict[str, Any] = {
        "flips": {"only_a": found.only_a, "only_b": found.only_b, "rate": found.rate, "right_in": named}
    }
    if all(len(each.place) == len(np.unique(each.document)) for each in trials):
        only_a, only_b = len(named["a"]), len(named["b"])
        told["mcnemar"] = {"only_a": only_a, "only_b": only_b, "p": mcnemar(only_a, only_b)}
        told["findable"] = findable(len(shared), found.rate)
    return told


def _noise(runs: Sequence[Run], task: str, common: bool) -> dict[str, Any]:
    """Returns how runs of one model with several seeds differ, over all pairs of them."""
    rates, differences, spreads = [], [], []
    for first, second in itertools.combinations(runs, 2):
        both = pair(first, second, task, common=common)
        trials = both.metrics[first.results["tasks"][task]["headline"]]
        rows_a, rows_b, _ = _matched(*trials)
        a, b = (rows[:, 0] / rows[:, 1] for rows in (rows_a, rows_b))
        if all(each.binary and each.single for each in trials):
            rates.append(flips(a, b).rate)
        differences.append(float(b.mean() - a.mean()))
        spreads.append(spread_by_chance(a, b))
    spread = float(np.sqrt(np.mean(np.square(spreads))))
    return {
        "runs": [run.directory for run in runs[1:]],
        "flip_rate": float(np.mean(rates)) if rates else None,
        "differences": differences,
        "spread": spread,
        "reach": Z_95 * spread,
    }


def table(compared: Mapping[str, Any], *, shown: int = _SHOWN) -> str:
    """Returns a comparison as lines of a terminal.

    Args:
      shown: how many flipped documents of each kind are named.
    """
    lines = []
    for name in ("a", "b"):
        about = compared[name]
        seed = "" if about["seed"] is None else f", seed {about['seed']}"
        lines += wrapped(f"{name.upper()}: {about['directory']} ({about['model'] or 'model unknown'}{seed})")
        for task, figures in compared["tasks"].items():
            protocol, mode, sampling, budget = figures["settings"][name]
            lines += wrapped(
                f"   {task}: protocol {protocol}, mode {mode}, sampling {sampling}, budget {budget}, "
                f"cut {_cut_cell(figures['cut'][name])}"
            )
    header = ("task", "metric", "n", "A", "B", "B - A", "cut A", "cut B")
    rows = [
        (task, metric, f"{each['n']:,}", _cell(each["a"]), _cell(each["b"]), _difference_cell(each), *cuts)
        for task, figures in compared["tasks"].items()
        for cuts in [[_cut_cell(figures["cut"][name]) for name in ("a", "b")]]
        for metric, each in figures["metrics"].items()
    ]
    lines += ["", *columns(header, rows, left=(0, 1)), ""]
    for task, figures in compared["tasks"].items():
        for sentence in _sentences(figures, shown):
            lines += wrapped(f"{task}: {sentence}")
    return "\n".join(lines)


def _cut_cell(cut: float | None) -> str:
    return UNKNOWN if cut is None else share(cut)


def _cell(estimate: Mapping[str, float]) -> str:
    if is_share(estimate):
        return f"{100 * estimate['value']:.2f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"


def _difference_cell(metric: Mapping[str, Any]) -> str:
    scale, digits = (100, "+.2f") if is_share(metric["a"]) and is_share(metric["b"]) else (1, "+.4g")
    value, low, high = (format(scale * metric["difference"][name], digits) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _sentences(figures: Mapping[str, Any], shown: int) -> list[str]:
    difference = figures["metrics"][figures["headline"]]["difference"]
    told = []
    if figures["left_out"]:
        told.append(f"{figures['left_out']:,} documents are not the same in both and are left out")
    if "flips" in figures:
        found = figures["flips"]
        told.append(f"{share(found['only_a'])} right in A alone, {share(found['only_b'])} right in B alone")
    if "mcnemar" in figures:
        test, sure = figures["mcnemar"], figures["findable"]
        told.append(f"McNemar's exact test of {test['only_a']:,} against {test['only_b']:,}: p = {test['p']:.3g}")
        told.append(
            "too few documents flip for any difference to be found 4 times in 5"
            if sure is None
            else f"with so many flips a difference of {100 * sure:.2f} points would have been found 4 times in 5"
        )
    elif "flips" in figures:
        told.append("no McNemar test, for documents have several samples; the bootstrap takes them into account")
    if noise := figures.get("noise"):
        within = "within" if abs(difference["value"]) <= noise["reach"] else "beyond"
        rate = (
            "" if noise["flip_rate"] is None else f"{share(noise['flip_rate'])} of documents flip between two seeds; "
        )
        seen = ", ".join(f"{100 * each:+.2f}" for each in noise["differences"])
        told.append(
            f"{rate}seeds alone move the difference by {100 * noise['spread']:.2f} points (standard deviation; seen: "
            f"{seen}), and B - A is {within} the {100 * noise['reach']:.2f} points that hold 95 % of such runs"
        )
    for name, other in (("a", "b"), ("b", "a")) if "flips" in figures and shown else ():
        ids = figures["flips"]["right_in"][name]
        more = f" and {len(ids) - shown:,} more" if len(ids) > shown else ""
        told.append(f"{name.upper()} right, {other.upper()} wrong: {', '.join(ids[:shown]) or 'none'}{more}")
    return told


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Ends in the one line that every command ends in."""
        raise ValueError(f"{message} (--help lists every option)")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = _Parser(
        prog="python -m eval.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="DIR_A", help="evaluation directory of the first model")
    parser.add_argument("b", metavar="DIR_B", help="evaluation directory of the second model")
    parser.add_argument(
        "--noise", nargs="+", default=[], metavar="DIR_C", help="runs of the model of A with other seeds"
    )
    parser.add_argument("--common", action="store_true", help="compare what two runs share, where they do not fit")
    parser.add_argument("--flips", type=int, default=_SHOWN, metavar="N", help="flipped documents that are named")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file to write the comparison to")
    with one_line_errors():
        options = parser.parse_args(argv)
        if options.flips < 0:
            raise ValueError(f"--flips {options.flips}: give a number of documents from 0.")
        if options.out is not None and (options.out.exists() or not options.out.parent.is_dir()):
            raise ValueError(f"--out {options.out}: it exists, or its folder does not; name a new file.")
        compared = compare(options.a, options.b, noise=options.noise, common=options.common)
        if options.out is not None:
            write_json(options.out, compared)
    print(table(compared, shown=options.flips))


if __name__ == "__main__":
    main(sys.argv[1:])
