"""The loop with a step that is plain arithmetic: order of writes, early ends, numbers that are not finite."""

import logging

import jax.numpy as jnp
import pytest
from flax import nnx

from train.loop import run_steps
from train.metrics import METRICS, MetricsWriter, read_rows
from train.state import TrainState


class Counter:
    """Batches 1, 2, ... up to a last one."""

    def __init__(self, last):
        self.at, self.last = 0, last

    def __next__(self):
        if self.at == self.last:
            raise StopIteration
        self.at += 1
        return {"number": self.at}

    def get_state(self):
        return {"at": self.at}


class Saved:
    """Stands for checkpoints; notes what was saved and how many rows were on disk by then."""

    def __init__(self, workdir):
        self.workdir, self.log = workdir, []

    def save(self, state, data_state):
        self.log.append((int(state.step), data_state["at"], len(read_rows(self.workdir / METRICS))))


def step(state, frozen, batch):
    del frozen
    loss = jnp.float32("nan") if batch["number"] == 7 else jnp.float32(batch["number"])
    return state._replace(step=state.step + 1), {"loss": loss, "input_tokens": jnp.int32(4)}


def train(workdir, *, steps, batches=100, start=0, every=3):
    saved, metrics = Saved(workdir), MetricsWriter(workdir, first_step=start + 1, last_step=steps)
    iterator = Counter(batches)
    iterator.at = start
    state = TrainState(jnp.int32(start), nnx.State({}), ())
    try:
        state = run_steps(
            state, nnx.State({}), step, iterator, lambda batch: batch,
            last_step=steps, checkpoints=saved, checkpoint_every=every, metrics=metrics,
        )  # fmt: skip
    finally:
        metrics.close()
    return state, saved.log


def test_checkpoints_come_after_their_rows_and_at_the_end(tmp_path):
    state, log = train(tmp_path, steps=5)
    assert int(state.step) == 5
    assert log == [(3, 3, 3), (5, 5, 5)]
    rows = read_rows(tmp_path / METRICS)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["tokens_per_second"] > 0 and row["step_seconds"] > 0 for row in rows)


def test_a_last_step_on_the_beat_is_saved_once(tmp_path):
    assert train(tmp_path, steps=6)[1] == [(3, 3, 3), (6, 6, 6)]


def test_data_that_end_early_end_the_run_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        state, log = train(tmp_path, steps=9, batches=4)
    assert int(state.step) == 4 and log == [(3, 3, 3), (4, 4, 4)]
    assert "ended after step 4 of 9" in caplog.text


def test_a_loss_that_is_not_finite_stops_before_the_next_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"step 7: loss is nan; .*learning_rate"):
        train(tmp_path, steps=20, every=8)
    assert len(read_rows(tmp_path / METRICS)) == 6


def test_the_last_step_is_checked_too(tmp_path):
    with pytest.raises(ValueError, match="step 7"):
        train(tmp_path, steps=7, every=7)
