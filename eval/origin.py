"""How results came about: their settings, what wrote the samples, and which code scored them."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from eval.backends.base import Backend
from eval.config import EvalConfig
from eval.judge import settings_of
from eval.samples import samples_path
from eval.stats import INTERVALS
from eval.version import code

# What samples that are scored again still owe to the run that wrote them: of the run, and of a task.
_OF_RUN = (
    "model", "adapter", "mode", "style", "limit", "split", "repeats", "seed", "thinking_budget", "labels", "engines",
)  # fmt: skip
_OF_TASK = ("sampling", "max_new_tokens")


def describe(config: EvalConfig, out: Path, backend: Backend | None, engines: Collection[str | None]) -> dict[str, Any]:
    """Returns the results without figures.

    Args:
      out: the evaluation directory; its results.json, if it is there, describes what wrote earlier samples.
      backend: what wrote the last samples; None if all were there already.
      engines: the fingerprints that the samples bear.
    """
    stored = _results_in(out)
    known = stored.get("engines", {}) | ({} if backend is None else {backend.fingerprint: backend.identity})
    return {
        "model": config.model.path if config.server.url is None else config.server.model or config.server.url,
        "adapter": config.model.adapter,
        "mode": config.mode,
        "protocol": config.protocol,
        "style": config.style,
        "limit": config.limit,
        "split": config.split,
        "repeats": config.repeats,
        "seed": config.seed,
        "thinking_budget": config.thinking_budget,
        **settings_of(config.judge),
        "labels": stored.get("labels", []) if backend is None else list(backend.labels),
        # None: a run that was broken off used this one, and nothing is known of it.
        "engines": {name: known.get(name) for name in sorted(engine for engine in engines if engine is not None)},
        "code": code(),
        "intervals": INTERVALS,
        "tasks": {},
    }


def recorded(responses: Path, task: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what the run that wrote stored responses recorded of itself, and of a task.

    Args:
      responses: ``OUT/samples/TASK.jsonl`` of a finished run; of any other file nothing is known.

    Raises:
      ValueError: the run's results are damaged.
    """
    out = responses.parent.parent
    if responses != samples_path(out, task) or not (out / "config.json").is_file():
        return {}, {}
    stored = _results_in(out)
    summary = stored.get("tasks", {}).get(task)
    if summary is None:
        return {}, {}
    of_run = {name: stored[name] for name in _OF_RUN if name in stored}
    return of_run, {name: summary[name] for name in _OF_TASK if name in summary}


def _results_in(out: Path) -> dict[str, Any]:
    path = out / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as err:
        raise ValueError(f"{path} is not valid JSON ({err}); remove it: the run that it is of writes it anew.") from err
