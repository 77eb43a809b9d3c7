"""How the results of a run came about: its settings, and what wrote the samples."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from eval.backends.base import Backend
from eval.config import EvalConfig
from eval.judge import settings_of
from eval.stats import INTERVALS


def describe(config: EvalConfig, out: Path, backend: Backend | None, engines: Collection[str | None]) -> dict[str, Any]:
    """Returns the results without figures.

    Args:
      out: the evaluation directory; its results.json, if it is there, describes what wrote earlier samples.
      backend: what wrote the last samples; None if all were there already.
      engines: the fingerprints that the samples bear.
    """
    path = out / "results.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
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
        "intervals": INTERVALS,
        "tasks": {},
    }
