"""The results of a run: results.json, and report.html, one page that needs no network and no script.

``page.html`` and ``charts.html`` are templates that escape every value by themselves. The files beside them prepare
what these show.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from eval.report import charts, wording
from eval.report.failures import failures_of
from eval.report.thinking import thinking_lengths
from eval.samples import SampleFile
from eval.summary import judge_words
from eval.tasks.base import Document
from qwen35_jax.storage import write_atomically, write_json

# Shown in places of their own, or not at all: times differ from run to run.
_APART = ("tasks", "seconds", "intervals", "labels")


def write_report(
    out: Path, results: Mapping[str, Any], files: Mapping[str, SampleFile], documents: Mapping[str, Sequence[Document]]
) -> None:
    """Writes ``results.json`` and ``report.html``, which also shows some samples that are not right.

    What ``results`` lacks is left out of the page. Equal results and samples give equal pages.

    Args:
      results: what results.json holds.
      files: the samples of each task.
      documents: of each task, for the prompts of the samples; of a task without them no prompt is shown.
    """
    write_json(out / "results.json", results)
    failures = failures_of(files, documents, style=results.get("style", "chat"))
    tasks = []
    for number, (task, summary) in enumerate(results["tasks"].items(), start=1):
        thinking = None
        if results.get("mode") != "non_thinking":
            thinking = thinking_lengths(files[task].finished.values())
        tasks.append(
            {
                "name": task,
                "key": f"task{number}",
                "summary": summary,
                "conditions": wording.conditions(results, summary),
                "lengths": charts.histograms(summary.get("lengths")),
                "thinking": charts.histograms(thinking),
                "curve": charts.curve(summary),
                "failures": failures[task],
                "judge": judge_words(summary) if "judge" in summary else None,
            }
        )
    settings = {name: _plain(value) for name, value in results.items() if name not in _APART and _says_something(value)}
    page = _template().render(results=results, settings=settings, tasks=tasks)
    # Stored text can hold half a surrogate pair, which no file can.
    write_atomically(out / "report.html", page.encode("utf-8", "replace").decode("utf-8"))


def _says_something(value: Any) -> bool:
    return value is not None and value not in ([], {}, "")


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: wording.visible(value) if isinstance(value, str) else value,
    )  # fmt: skip
    environment.filters |= {
        "amount": wording.amount,
        "card": wording.card,
        "estimate": wording.estimate,
        "interval": wording.interval,
        "number": wording.number,
        "strip": charts.strip,
    }
    return environment.get_template("page.html")
