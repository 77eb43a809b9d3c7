"""What a run found: results.json, a table, and a page to read."""

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.samples import write_json
from eval.stats import clustered, wilson
from eval.tasks.base import OUTCOMES

SAMPLES_SHOWN = 25

INTERVALS = (
    "95 %: Wilson score; where a sample has several trials (instructions), Wilson with the effective number "
    "of trials from the variance between samples"
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd; }
td { text-align: right; } th, td:first-child { text-align: left; } pre { white-space: pre-wrap; background: #f6f6f6;
padding: .6rem; max-height: 20rem; overflow: auto; } details { margin: .4rem 0; }
"""


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns ``n``, the metrics with their intervals, and the number of samples of each outcome.

    Args:
      rows: stored samples of one task; at least one.
    """
    metrics = {}
    for name in rows[0]["checks"]:
        trials = [row["checks"][name] for row in rows]
        if all(len(each) == 1 for each in trials):
            hits = sum(each[0] for each in trials)
            value, (low, high) = hits / len(trials), wilson(hits, len(trials))
        else:
            value, low, high = clustered(trials)
        metrics[name] = {"value": value, "low": low, "high": high}
    outcomes = Counter(row["outcome"] for row in rows)
    return {"n": len(rows), "metrics": metrics, "outcomes": {outcome: outcomes[outcome] for outcome in OUTCOMES}}


def write_report(
    out: Path, results: Mapping[str, Any], rows_by_task: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Writes ``results.json`` and ``report.html``.

    Args:
      results: what results.json holds.
      rows_by_task: the samples, of which the page shows some that are not right.
    """
    write_json(out / "results.json", results)
    parts = [_settings(results)]
    for task, summary in results["tasks"].items():
        parts += [f"<h2>{html.escape(task)}</h2>", _metrics(summary), _samples(rows_by_task[task])]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title><style>{_STYLE}</style>'
        f"<h1>Evaluation</h1>{''.join(parts)}</html>\n"
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def table(results: Mapping[str, Any]) -> str:
    """Returns the metrics and outcomes as lines for a terminal."""
    lines = [f"{'task':<10} {'metric':<20} {'value':>7}   95 % interval      n"]
    for task, summary in results["tasks"].items():
        for name, metric in summary["metrics"].items():
            interval = f"[{metric['low']:.4f}, {metric['high']:.4f}]"
            lines.append(f"{task:<10} {name:<20} {metric['value']:>7.4f}   {interval}  {summary['n']:>5}")
        lines.append(f"{task:<10} " + ", ".join(f"{name} {count}" for name, count in summary["outcomes"].items()))
    return "\n".join(lines)


def _settings(results: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in results.items() if name != "tasks" and value is not None}
    return _html_table(((name, str(value)) for name, value in shown.items()), header=("setting", "value"))


def _metrics(summary: Mapping[str, Any]) -> str:
    metrics = (
        (name, f"{100 * metric['value']:.2f}", f"{100 * metric['low']:.2f} to {100 * metric['high']:.2f}")
        for name, metric in summary["metrics"].items()
    )
    outcomes = ((name, str(count)) for name, count in summary["outcomes"].items())
    return (
        f"<p>{summary['n']} samples</p>"
        + _html_table(metrics, header=("metric", "%", "95 % interval"))
        + _html_table(outcomes, header=("outcome", "samples"))
    )


def _samples(rows: Sequence[Mapping[str, Any]]) -> str:
    missed = [row for row in rows if not row["correct"]]
    parts = [f"<h3>The first {min(SAMPLES_SHOWN, len(missed))} of {len(missed)} samples that are not right</h3>"]
    for row in missed[:SAMPLES_SHOWN]:
        title = f"{row['id']}: {row['outcome']}" + (f", {row['prediction']}" if row["prediction"] is not None else "")
        thinking = f"<p>thinking</p><pre>{html.escape(row['thinking'])}</pre>" if row["thinking"] else ""
        parts.append(
            f"<details><summary>{html.escape(title)}</summary>{thinking}"
            f"<p>response</p><pre>{html.escape(row['response'])}</pre></details>"
        )
    return "".join(parts)


def _html_table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
