"""The training loop: batches in, metrics and checkpoints out, whatever the step computes."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from train.checkpoint import Checkpoints
from train.losses import Batch
from train.metrics import MetricsWriter, Row
from train.state import TrainState
from train.step import Metrics, Step

logger = logging.getLogger(__name__)

HostBatch = Mapping[str, np.ndarray]


class Batches(Protocol):
    """An iterator over batches whose position can be stored and restored exactly."""

    def __next__(self) -> HostBatch: ...

    def get_state(self) -> dict[str, Any]: ...


def run_steps(
    state: TrainState,
    frozen: nnx.State,
    step: Step,
    batches: Batches,
    put: Callable[[HostBatch], Batch],
    *,
    last_step: int,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    metrics: MetricsWriter,
) -> TrainState:
    """Trains from the step after ``state.step`` through ``last_step`` and returns the final state.

    The host stays one step ahead of the device. A checkpoint is written every ``checkpoint_every`` steps and
    after the last one, once its step's metrics proved finite and are on disk. When the data end early,
    training stops there with a warning.

    Args:
      put: places a batch on the mesh.

    Raises:
      ValueError: the loss or the gradient is not finite; checkpoints stay as they were.
    """
    saved = int(state.step)
    recorder = _Recorder(metrics)

    def save() -> int:
        recorder.flush()
        metrics.sync()
        checkpoints.save(state, batches.get_state())
        recorder.restart_clock()
        return int(state.step)

    for number in range(saved + 1, last_step + 1):
        batch = next(batches, None)
        if batch is None:
            logger.warning("the data ended after step %d of %d; raise data.epochs to train on", number - 1, last_step)
            break
        state, values = step(state, frozen, put(batch))
        recorder.add(number, values)
        if number % checkpoint_every == 0:
            saved = save()
    if int(state.step) > saved:
        save()
    return state


class _Recorder:
    """Writes the metrics of a step while the next one runs, with the time between the ends of the two."""

    def __init__(self, metrics: MetricsWriter):
        self._metrics = metrics
        self._pending: tuple[int, Metrics] | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out what happened since the last step ended."""
        self._ended = time.perf_counter()

    def add(self, number: int, values: Metrics) -> None:
        """Takes the metrics of a step that was just dispatched, and writes those of the step before."""
        self.flush()
        self._pending = (number, values)

    def flush(self) -> None:
        """Waits for the step last added and writes its metrics."""
        if self._pending is None:
            return
        number, values = self._pending
        self._pending = None
        row: Row = {"step": number} | {name: value.item() for name, value in jax.device_get(values).items()}
        bad = {name: value for name, value in row.items() if not math.isfinite(value)}
        if bad:
            shown = ", ".join(f"{name} is {value}" for name, value in bad.items())
            raise ValueError(
                f"step {number}: {shown}; training stopped and checkpoints are as before. Lower "
                "optim.learning_rate, lengthen optim.warmup_steps or look at the data of that step."
            )
        now = time.perf_counter()
        seconds, self._ended = now - self._ended, now
        self._metrics.write(row | {"step_seconds": seconds, "tokens_per_second": row["input_tokens"] / seconds})
