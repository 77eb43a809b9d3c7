"""The numbers of a server as Prometheus reads them."""

import collections
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from qwen35_jax.inference.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "requests": "completions that the engine was asked for",
    "prompt_tokens": "tokens of prompts",
    "prefilled_tokens": "tokens that were read, those read again after a preemption included",
    "generated_tokens": "tokens written",
    "preemptions": "completions that gave their pages back and were written again",
    "forks": "completions that took over the prompt of another one",
    "tower_runs": "runs of the vision tower",
    "patches": "patches of images and videos that it has read",
    "decode_calls": "calls of the decode program",
    "decode_steps": "steps of the decode program",
}
_GAUGES = {
    "slots": "slots of the engine",
    "num_free_slots": "slots without a completion",
    "num_pages": "pages of the cache",
    "num_free_pages": "pages without an owner",
    "num_waiting": "completions that wait for a slot",
}


@dataclasses.dataclass
class HttpCounts:
    """What happened at the door.

    Attributes:
      responses: by path and status.
      disconnects: clients that went away before their answer was complete.
    """

    responses: collections.Counter[tuple[str, int]] = dataclasses.field(default_factory=collections.Counter)
    disconnects: int = 0


def read_engine(engine: Engine) -> dict[str, Any]:
    """Copies the engine's numbers; only the engine's thread may call it."""
    return {"metrics": copy.deepcopy(engine.metrics)} | {name: getattr(engine, name) for name in _GAUGES}


def prometheus_text(engine: Mapping[str, Any], http: HttpCounts, *, num_open: int) -> str:
    """Writes all numbers in Prometheus' text format.

    Args:
      engine: what ``read_engine`` returned.
      num_open: completions that wait or are being written.
    """
    metrics = engine["metrics"]
    lines: list[str] = []

    def add(name: str, kind: str, help_text: str, samples: Mapping[str, float]) -> None:
        lines.extend((f"# HELP qwen35_{name} {help_text}", f"# TYPE qwen35_{name} {kind}"))
        lines.extend(f"qwen35_{name}{labels} {value}" for labels, value in samples.items())

    responses = {_labels(path=path, status=status): n for (path, status), n in sorted(http.responses.items())}
    add("http_responses_total", "counter", "responses by path and status", responses)
    add("http_disconnects_total", "counter", "clients that went away before the end", {"": http.disconnects})
    add("open_completions", "gauge", "completions that wait or are being written", {"": num_open})
    for name, help_text in _GAUGES.items():
        add(name.removeprefix("num_"), "gauge", help_text, {"": engine[name]})
    for name, help_text in _COUNTERS.items():
        add(f"{name}_total", "counter", help_text, {"": getattr(metrics, name)})
    finished = {_labels(reason=reason): count for reason, count in metrics.finished.items()}
    add("finished_total", "counter", "completions by how they ended", finished)
    for kind in ("proposed", "accepted"):
        samples = dict(_drafts(metrics, kind))
        add(f"drafts_{kind}_total", "counter", f"tokens of the draft head that were {kind}", samples)
    return "\n".join(lines) + "\n"


def _drafts(metrics: Any, kind: str) -> Iterator[tuple[str, int]]:
    for label in ("position", "section", "length"):
        for value, counted in getattr(metrics, f"by_{label}").items():
            yield _labels(by=label, value=value), getattr(counted, kind)


def _labels(**labels: object) -> str:
    # Nothing that a client chooses is among the values, so none of them has quotes.
    quoted = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{quoted}}}"
