"""Writes a step's metrics while the next one runs, and decides what an unsound step means for the run."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, SupportsFloat

import jax

from qwen35_jax.distributed import gather
from qwen35_jax.storage import write_atomically
from train.batch import Batch
from train.config.health import HealthConfig
from train.data.pipeline import Batches
from train.observe.health import complaint
from train.observe.metrics import Entry, MetricsWriter
from train.observe.throughput import Throughput, memory_in_use
from train.observe.trackers import Text
from train.observe.warnings import LossWatch
from train.step import Metrics

logger = logging.getLogger(__name__)

# What every step tells of.
_TIMES = ("data_seconds", "checkpoint_seconds")


class _Pending(NamedTuple):
    number: int
    values: Metrics
    documents: Callable[[], list[list[str]]]
    epoch: float
    figures: Mapping[str, float | int | None]
    seconds: dict[str, float]
    began: float


class Reporter:
    """Holds the metrics of one step until the device has computed them.

    Args:
      terms: the names of what is minimised.
      positions: tokens and padding in a batch.
      first_sequence: the first sequence of a batch that this process feeds.
      watch: warns of losses.
    """

    def __init__(
        self,
        workdir: Path,
        metrics: MetricsWriter,
        throughput: Throughput,
        health: HealthConfig,
        *,
        terms: Sequence[str],
        positions: int,
        first_sequence: int = 0,
        watch: LossWatch | None = None,
    ):
        self._folder = workdir / "unsound"
        self._metrics, self._throughput, self._health = metrics, throughput, health
        self._terms, self._positions, self._first_sequence = terms, positions, first_sequence
        self._watch = watch
        self._pending: _Pending | None = None
        self._ended = time.perf_counter()
        self._seconds = dict.fromkeys(_TIMES, 0.0)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to a field of the next step's entry."""
        began = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Does not count the time spent inside for the next step."""
        began = time.perf_counter()
        yield
        self._ended += time.perf_counter() - began

    def teach(self, teach: Callable[[Batch], Batch], batch: Batch) -> Batch:
        """Returns what a live teacher says of the next step's batch, once it is computed.

        The step before ends first. So ``teacher_seconds`` is the time of the teacher alone, and ``student_seconds``
        that of the student's step.
        """
        self.flush()
        with self.timed("teacher_seconds"):
            return jax.block_until_ready(teach(batch))

    def add(self, number: int, values: Metrics, batches: Batches, *, began: float) -> None:
        """Takes the metrics of a step that was just dispatched, and writes those of the step before.

        Args:
          batches: returned the batch of this step last.
          began: when it was dispatched, by ``time.perf_counter``.
        """
        self.flush()
        of_batch = batches.documents_later(), batches.epoch, batches.figures()
        self._pending = _Pending(number, values, *of_batch, self._seconds, began)
        self._seconds = dict.fromkeys(_TIMES, 0.0)

    def flush(self, evaluate: Callable[[], Mapping[str, float | int]] | None = None) -> Entry:
        """Waits for the step last added and writes its metrics, with figures that ``evaluate`` returns after it.

        If the entry of that step is written already, the figures are added to it.

        Returns:
          The figures, by their names in the metrics.

        Raises:
          ValueError: the step is unsound and the policy, or the number of such steps in a row, stops the run.
        """
        if self._pending is None:
            figures = self._evaluated(evaluate)
            if figures:
                self._metrics.amend(figures)
            return figures
        number, values, documents, epoch, told, seconds, began = self._pending
        self._pending = None
        values = {name: value.item() for name, value in jax.device_get(values).items()}
        now = time.perf_counter()
        elapsed, self._ended = now - self._ended, now
        if "teacher_seconds" in seconds:
            seconds["student_seconds"] = now - began
        if values["skipped"]:
            self._report_unsound(number, values, documents())
        entry: Entry = {"step": number} | {name: _finite(value) for name, value in values.items()}
        entry["epoch"] = epoch
        entry["packing_efficiency"] = values["input_tokens"] / self._positions
        entry |= self._throughput.rates(values["input_tokens"], elapsed) | seconds
        entry |= told
        if self._watch is not None:
            for warning in self._watch.add(number, values):
                logger.warning(warning)
        memory = memory_in_use()
        figures = self._evaluated(evaluate)
        self._metrics.write(entry | figures, momentary=memory)
        return figures

    def _evaluated(self, evaluate: Callable[[], Mapping[str, float | int]] | None) -> Entry:
        if evaluate is None:
            return {}
        began = time.perf_counter()
        figures: Entry = {f"eval_{name}": _number(value) for name, value in evaluate().items()}
        self.leave_out()
        return figures | {"evaluation_seconds": self._ended - began}

    def show(self, number: int, sample: Callable[[], Sequence[Text]]) -> None:
        """Hands texts of the step last added to the trackers, once its metrics are written."""
        self.flush()
        self._metrics.show(number, sample())
        self.leave_out()

    def leave_out(self) -> None:
        """Does not count the time since the last step ended for the next one."""
        self._ended = time.perf_counter()

    def sync(self) -> None:
        """Writes all metrics there are, and puts them on disk."""
        self.flush()
        self._metrics.sync()

    def _report_unsound(self, number: int, values: dict[str, float | int], documents: list[list[str]]) -> None:
        """Writes what the step was computed from, and stops the run if the policy says so."""
        path = self._folder / f"step_{number:08d}.json"
        numbered = gather(list(enumerate(documents, self._first_sequence)))
        by_sequence = dict(pair for pairs in numbered for pair in pairs)
        if jax.process_index() == 0:
            self._folder.mkdir(exist_ok=True)
            shown = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
            report = {"step": number, "metrics": shown, "documents_by_sequence": by_sequence}
            write_atomically(path, json.dumps(report, indent=1))
        reason = f"step {number}: {complaint(values, self._terms)}"
        if self._health.policy == "stop":
            raise ValueError(
                f"{reason}; training stopped and checkpoints are as before. {path} names the documents of that step; "
                "lower optim.learning_rate, lengthen optim.warmup, or skip such steps with health.policy=skip."
            )
        if values["skipped"] > self._health.max_skips:
            raise ValueError(
                f"{reason}; {values['skipped']} steps in a row were not applied, more than "
                f"health.max_skips={self._health.max_skips}. {self._folder} names their documents; lower "
                "optim.learning_rate, or raise the limits of health if they are too tight."
            )
        logger.warning("%s; the step is skipped, %s names its documents", reason, path)


def _number(value: SupportsFloat) -> float | int | None:
    """Returns a figure, which may be a NumPy scalar, as JSON can hold it."""
    return value if isinstance(value, int) else _finite(float(value))


def _finite(value: float | int) -> float | int | None:
    """Returns None for what is not finite, which JSON cannot express."""
    return value if math.isfinite(value) else None
