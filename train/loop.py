"""The training loop: batches in, metrics and checkpoints out, whatever the step computes."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from train.batch import Batch, HostBatch
from train.best import Best
from train.checkpoint import Checkpoints
from train.data.pipeline import Batches
from train.evaluation import Evaluate
from train.observe.reporter import Reporter
from train.observe.trace import Trace
from train.preemption import Preempted
from train.samples import Sample
from train.state import Frozen, TrainState
from train.step import Step

logger = logging.getLogger(__name__)


class Schedule(NamedTuple):
    """After which steps something happens."""

    last_step: int
    checkpoint_every: int
    evaluate_every: int | None = None
    """By default as often as checkpoints are written."""
    sample_every: int | None = None

    def evaluates_after(self, step: int) -> bool:
        """Whether there is an evaluation after a step; there always is one after the last."""
        return step == self.last_step or step % (self.evaluate_every or self.checkpoint_every) == 0

    def samples_after(self, step: int) -> bool:
        """Whether there are samples after a step, as there always are after the last."""
        return self.sample_every is not None and (step == self.last_step or step % self.sample_every == 0)


class Watch(NamedTuple):
    """What is looked at between steps. None of it changes the state."""

    evaluate: Evaluate | None = None
    """Returns figures for the metrics of a step."""
    best: Best | None = None
    """Judges the figures."""
    sample: Sample | None = None
    """Returns texts for the trackers."""


def run_steps(
    state: TrainState,
    frozen: Frozen,
    step: Step,
    batches: Batches,
    put: Callable[[HostBatch], Batch],
    schedule: Schedule,
    *,
    checkpoints: Checkpoints,
    reporter: Reporter,
    trace: Trace,
    is_preempted: Callable[[int], bool],
    watch: Watch,
) -> TrainState:
    """Trains from the step after ``state.step`` through ``schedule.last_step`` and returns the final state.

    The host stays one step ahead of the device, unless a batch is made with the state or taught by a live teacher. A
    checkpoint is written every ``checkpoint_every`` steps, after the last one, after the best evaluation so far, on
    preemption, and if the next batch cannot be read, once the metrics of its step are known to be sound and are on
    disk. Training stops early where the data end, with a warning, and when patience ends.

    Args:
      put: places a batch on the mesh.
      is_preempted: asked after every step.

    Raises:
      ValueError, OSError: a step is unsound and not saved, or the next batch cannot be read.
      Preempted: the machine is taken away; the state is saved.
    """
    saved = int(state.step)
    save = partial(_save, checkpoints=checkpoints, batches=batches, reporter=reporter)
    for number in range(saved + 1, schedule.last_step + 1):
        _settle(batches, reporter)
        with reporter.timed("data_seconds"), _saving(state, saved, save, checkpoints):
            batch = _next(batches, state)
        if batch is None:
            logger.warning("the data ended after step %d; raise --data.epochs to train on", number - 1)
            break
        with trace.around(number, reporter.flush):
            placed, began = put(batch), time.perf_counter()
            state, values = step(state, frozen, placed)
            reporter.add(number, values, batches, began=began)
        is_best = _look(state, number, schedule, watch, reporter)
        if is_preempted(number):
            _save_the_last(state, save, checkpoints)
            raise Preempted(number)
        if is_best or number % schedule.checkpoint_every == 0:
            saved = save(state)
        if watch.best is not None and watch.best.is_exhausted:
            break
    if not schedule.evaluates_after(int(state.step)):
        # The data ended before the last step.
        _evaluate(state, watch, reporter)
        reporter.sync()
    if int(state.step) > saved:
        save(state)
    # While this waits, SIGTERM does not end the process yet.
    checkpoints.wait()
    return state


def _save_the_last(state: TrainState, save: Callable[[TrainState], int], checkpoints: Checkpoints) -> None:
    """Saves a state after which the run ends, and waits for it."""
    save(state)
    checkpoints.wait()


def _settle(batches: Batches, reporter: Reporter) -> None:
    """Lets the step before end where the next batch needs its state, so that the time of neither holds the other's."""
    if batches.needs_state:
        reporter.flush()


def _next(batches: Batches, state: TrainState) -> HostBatch | None:
    """Returns the batch of the step that begins from a state; None where the data end."""
    batches.see(state)
    return next(batches, None)


@contextlib.contextmanager
def _saving(
    state: TrainState, saved: int, save: Callable[[TrainState], int], checkpoints: Checkpoints
) -> Iterator[None]:
    """Saves a state that is not saved yet if the batch after it cannot be read."""
    try:
        yield
    except (ValueError, OSError):
        if int(state.step) > saved:
            _save_the_last(state, save, checkpoints)
            logger.info("the next batch cannot be read; the state after step %d is saved", int(state.step))
        raise


def _look(state: TrainState, number: int, schedule: Schedule, watch: Watch, reporter: Reporter) -> bool:
    """Evaluates and shows what is due after a step, and returns whether it is the best so far."""
    is_best = schedule.evaluates_after(number) and _evaluate(state, watch, reporter)
    if watch.sample is not None and schedule.samples_after(number):
        reporter.show(number, partial(watch.sample, state))
    return is_best


def _evaluate(state: TrainState, watch: Watch, reporter: Reporter) -> bool:
    """Adds the figures of a state to its step's metrics, and returns whether it is the best so far."""
    if watch.evaluate is None:
        return False
    figures = reporter.flush(partial(watch.evaluate, state))
    return watch.best is not None and watch.best.add(int(state.step), figures)


def _save(state: TrainState, *, checkpoints: Checkpoints, batches: Batches, reporter: Reporter) -> int:
    """Saves the state once its metrics are on disk, and returns its step."""
    with reporter.timed("checkpoint_seconds"):
        checkpoints.wait()
    # Last, since it also makes sure that the directory still belongs to this run.
    reporter.sync()
    with reporter.timed("checkpoint_seconds"):
        checkpoints.save(state, batches.merge(batches.get_state()))
    reporter.leave_out()
    return int(state.step)
