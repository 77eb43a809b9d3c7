"""The results of a run: results.json, a table, and a page to read."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.samples import Sample, SampleFile, samples_path
from qwen35_jax.storage import write_json

SAMPLES_SHOWN = 25

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd; }
td { text-align: right; } th, td:first-child { text-align: left; } pre { white-space: pre-wrap; background: #f6f6f6;
padding: .6rem; max-height: 20rem; overflow: auto; } details { margin: .4rem 0; }
"""


def write_report(out: Path, results: Mapping[str, Any]) -> None:
    """Writes ``results.json`` and ``report.html``; the page shows some samples of the directory that are not right.

    Args:
      results: what results.json holds.
    """
    write_json(out / "results.json", results)
    parts = [_settings(results)]
    for task, summary in results["tasks"].items():
        file = SampleFile(samples_path(out, task))
        missed = [key for key, sample in file.finished.items() if not sample["correct"]][:SAMPLES_SHOWN]
        samples = [file.read(key) for key in missed]
        parts += [f"<h2>{html.escape(task)}</h2>", _metrics(summary), _samples(samples)]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title><style>{_STYLE}</style>'
        f"<h1>Evaluation</h1>{''.join(parts)}</html>\n"
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def _settings(results: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in results.items() if name != "tasks" and value is not None}
    return _html_table(((name, str(value)) for name, value in shown.items()), header=("setting", "value"))


def _metrics(summary: Mapping[str, Any]) -> str:
    metrics = []
    for name, metric in summary["metrics"].items():
        value, low, high = (metric[key] for key in ("value", "low", "high"))
        # A share is shown in percent; any other number as it is.
        percent = low >= 0 and high <= 1
        value, low, high = (f"{100 * each:.2f}" if percent else f"{each:.4g}" for each in (value, low, high))
        metrics.append((name, f"{value} %" if percent else value, f"{low} to {high}"))
    outcomes = ((name, str(count)) for name, count in summary["outcomes"].items())
    return (
        f"<p>{summary['n']} documents, {summary['samples']} samples; {summary['multiple_closes']} samples close "
        "their thinking more than once</p>"
        + _html_table(metrics, header=("metric", "value", "95 % interval"))
        + _html_table(outcomes, header=("outcome", "samples"))
    )


def _samples(samples: Sequence[Sample]) -> str:
    parts = [f"<h3>The first {len(samples)} samples that are not right</h3>"]
    for sample in samples:
        name = f"{sample['id']}, repeat {sample['repeat']}" if sample["repeat"] else sample["id"]
        found = "" if sample["prediction"] is None else f", {sample['prediction']}"
        title = html.escape(f"{name}: {sample['outcome']}{found}")
        thinking = f"<p>thinking</p><pre>{html.escape(sample['thinking'])}</pre>" if sample["thinking"] else ""
        parts.append(
            f"<details><summary>{title}</summary>{thinking}"
            f"<p>response</p><pre>{html.escape(sample['response'])}</pre></details>"
        )
    return "".join(parts)


def _html_table(lines: Iterable[Sequence[str]], header: Sequence[str]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(cells, 'td') for cells in lines)}</table>"
