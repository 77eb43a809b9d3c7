"""The loop with a step that is plain arithmetic: order of writes, early ends, preemption, evaluation, traces."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen35_jax.best import Goal
from tests.conftest import REPO
from train.agreement import AgreedBatches
from train.best import Best
from train.config import EarlyStopConfig, HealthConfig
from train.loop import Schedule, Watch, run_steps
from train.observe.health import new_health
from train.observe.metrics import METRICS, MetricsWriter, read_entries
from train.observe.reporter import Reporter
from train.observe.throughput import Throughput
from train.observe.trace import Trace
from train.observe.trackers import Trackers
from train.observe.warnings import LossWatch
from train.preemption import EXIT_CODE, Preempted, watch_for_preemption
from train.state import Frozen, TrainState


class Counter:
    """Batches 1, 2, ... up to a last one. One may be bad."""

    def __init__(self, last, bad=None):
        self.at, self.last, self.bad = 0, last, bad

    def __next__(self):
        if self.at == self.last:
            raise StopIteration
        self.at += 1
        if self.at == self.bad:
            raise ValueError("a.jsonl, line 7: bad")
        return {"number": self.at}

    needs_state = False

    def see(self, state):
        assert int(state.step) == self.at

    def figures(self):
        return {"told": -self.at}

    def get_state(self):
        return {"identity": {"shards": 1}, "batches": self.at, "shards": {"0": {}}}

    def merge(self, state):
        return state

    @property
    def epoch(self):
        return self.at / 4

    def documents_later(self):
        at = self.at
        return lambda: [[f"data line {at}"]]


class Saved:
    """Stands for checkpoints; notes what was saved, how many rows were on disk by then, and waits."""

    def __init__(self, workdir):
        self.workdir, self.log, self.waited_after = workdir, [], []

    def save(self, state, data_state):
        self.log.append((int(state.step), data_state["batches"], len(read_entries(self.workdir / METRICS))))

    def wait(self):
        self.waited_after.append(self.log[-1][0] if self.log else 0)


def step_with(unsound=()):
    """Returns a step whose batches of these numbers are unsound, as `train.step` treats them."""

    def step(state, frozen, batch):
        del frozen
        number, health = batch["number"], state.health
        bad = number in unsound
        skips = health.skips + 1 if bad else jnp.int32(0)
        loss = jnp.float32("nan") if bad else jnp.float32(number)
        values = {"loss": loss, "input_tokens": jnp.int32(4), "skipped": skips}
        return state._replace(step=state.step + 1, health=health._replace(skips=skips)), values

    return step


def train(workdir, *, steps, batches=100, bad=None, unsound=(), health=None, stop=None, **schedule):
    saved, metrics = (
        Saved(workdir),
        MetricsWriter(workdir, first_step=1, last_step=steps, terms=["loss"], trackers=Trackers(()), record={}),
    )
    health = HealthConfig() if health is None else health
    watch = LossWatch(vocab_size=512, learning_rate=1e-3, warmup=0, weights={"loss": 1.0})
    reporter = Reporter(
        workdir, metrics, Throughput(2, 1.0, 8.0), health, terms=["loss"], positions=8, first_sequence=5, watch=watch
    )
    evaluate, best, sample = (schedule.pop(name, None) for name in ("evaluate", "best", "sample"))
    profile = schedule.pop("profile", range(0))
    state = TrainState(jnp.int32(0), nnx.State({}), (), new_health())
    with contextlib.closing(metrics), Trace(workdir / "profile", profile) as trace:
        try:
            state = run_steps(
                state, Frozen(nnx.State({})), step_with(unsound), AgreedBatches(Counter(batches, bad)), dict,
                Schedule(steps, schedule.pop("every", 3), **schedule), checkpoints=saved, reporter=reporter,
                trace=trace, is_preempted=stop or (lambda step: False), watch=Watch(evaluate, best, sample),
            )  # fmt: skip
        finally:
            train.log, train.waited_after = saved.log, saved.waited_after
    return state, saved.log


@pytest.mark.parametrize(("bad", "log"), [(1, []), (3, [(2, 2, 2)]), (4, [(3, 3, 3)]), (5, [(3, 3, 3), (4, 4, 4)])])
def test_what_came_before_a_bad_batch_is_saved_with_the_position_before_it(tmp_path, bad, log):
    with pytest.raises(ValueError, match="line 7"):
        train(tmp_path, steps=9, bad=bad)
    assert train.log == log


def test_checkpoints_come_after_their_rows_and_at_the_end(tmp_path):
    state, log = train(tmp_path, steps=5)
    assert int(state.step) == 5
    assert log == [(3, 3, 3), (5, 5, 5)] and train.waited_after == [0, 3, 5]
    rows = read_entries(tmp_path / METRICS)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in rows] == [0.25, 0.5, 0.75, 1.0, 1.25]
    assert [row["told"] for row in rows] == [-1, -2, -3, -4, -5]
    for row in rows:
        assert row["packing_efficiency"] == 0.5
        assert row["tokens_per_second"] == pytest.approx(4 / row["step_seconds"])
        assert row["tokens_per_device_per_second"] == row["tokens_per_second"] / 2
        # One operation a token against eight that the device could do each second.
        assert row["fraction_of_peak_flops_per_second"] == row["tokens_per_device_per_second"] / 8
        assert row["data_seconds"] > 0
    assert [row["checkpoint_seconds"] > 0 for row in rows] == [False, False, False, True, False]


def test_a_loss_that_rises_is_warned_of_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(tmp_path, steps=60)
    assert caplog.text.count("the loss has risen to") == 1 and "step 26: " in caplog.text


def test_a_last_step_on_the_beat_is_saved_once(tmp_path):
    assert train(tmp_path, steps=6)[1] == [(3, 3, 3), (6, 6, 6)]


def test_data_that_end_early_end_the_run_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        state, log = train(tmp_path, steps=9, batches=4)
    assert int(state.step) == 4 and log == [(3, 3, 3), (4, 4, 4)]
    assert "ended after step 4" in caplog.text


@pytest.mark.parametrize("last", [7, 20])
def test_an_unsound_step_stops_before_the_next_checkpoint_and_names_its_documents(tmp_path, last):
    with pytest.raises(ValueError, match=r"step 7: loss is nan; .*learning_rate"):
        train(tmp_path, steps=last, every=7, unsound=[7])
    assert len(read_entries(tmp_path / METRICS)) == 6 and train.log == []
    [report] = (tmp_path / "unsound").iterdir()
    assert json.loads(report.read_text())["documents_by_sequence"] == {"5": ["data line 7"]}


def test_unsound_steps_are_skipped_by_policy(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        state, _ = train(tmp_path, steps=6, unsound=[2, 4, 5], health=HealthConfig(policy="skip", max_skips=2))
    assert int(state.step) == 6
    rows = read_entries(tmp_path / METRICS)
    assert [row["skipped"] for row in rows] == [0, 1, 0, 1, 2, 0]
    assert rows[1]["loss"] is None
    assert "step 2: loss is nan; the step is skipped" in caplog.text
    assert len(list((tmp_path / "unsound").iterdir())) == 3


def test_too_many_skips_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"step 5: .*3 steps in a row .* health.max_skips=2"):
        train(tmp_path, steps=9, unsound=[3, 4, 5], health=HealthConfig(policy="skip", max_skips=2))


def test_preemption_saves_the_step_waits_for_it_and_leaves_with_its_code(tmp_path):
    with pytest.raises(Preempted) as stop:
        train(tmp_path, steps=9, every=9, stop=lambda step: step == 4)
    assert stop.value.code == EXIT_CODE == 75
    assert train.log == [(4, 4, 4)] and train.waited_after == [0, 4]


def test_a_signal_is_noticed_after_the_step_and_its_handler_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with watch_for_preemption() as is_preempted:
        assert not is_preempted(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_preempted(2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_first_interrupt_saves_and_the_second_ends(caplog):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), watch_for_preemption() as is_preempted:
        assert not is_preempted(1)
        signal.raise_signal(signal.SIGINT)
        assert is_preempted(2)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def accuracy(state):
    return {"accuracy": np.float32(int(state.step) / 10), "none": float("nan"), "count": 3}


def evaluations(workdir):
    return {row["step"]: row["eval_accuracy"] for row in read_entries(workdir / METRICS) if "eval_accuracy" in row}


def test_evaluation_adds_its_figures_to_the_row_of_its_step_and_of_the_last(tmp_path):
    train(tmp_path, steps=5, every=2, evaluate=accuracy, evaluate_every=2)
    assert evaluations(tmp_path) == pytest.approx({2: 0.2, 4: 0.4, 5: 0.5})
    row = read_entries(tmp_path / METRICS)[1]
    assert row["eval_none"] is None and row["eval_count"] == 3 and row["evaluation_seconds"] > 0


def test_evaluations_are_as_frequent_as_checkpoints_by_default(tmp_path):
    train(tmp_path, steps=7, every=3, evaluate=accuracy)
    assert list(evaluations(tmp_path)) == [3, 6, 7]


@pytest.mark.parametrize("last", [4, 6])
def test_data_that_end_early_are_followed_by_an_evaluation_too(tmp_path, last):
    train(tmp_path, steps=9, every=3, batches=last, evaluate=accuracy, evaluate_every=5)
    assert list(evaluations(tmp_path)) == sorted({*range(5, last + 1, 5), last})
    assert [row["step"] for row in read_entries(tmp_path / METRICS)] == list(range(1, last + 1))


def test_the_best_evaluation_so_far_is_saved_and_patience_ends_the_run(tmp_path):
    losses = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0, 10: 1.0}
    best = Best(Goal("eval_x", maximise=False), EarlyStopConfig(patience=2))
    state, log = train(
        tmp_path, steps=12, every=5, evaluate=lambda state: {"x": losses[int(state.step)]}, evaluate_every=2, best=best
    )
    # The entry of a step is on disk before its checkpoint.
    assert log == [(2, 2, 2), (4, 4, 4), (5, 5, 5), (8, 8, 8)] and int(state.step) == 8
    assert best.step == 4 and list(best.scores) == [2, 4, 6, 8]


def test_samples_are_written_every_few_steps_and_after_the_last(tmp_path):
    sampled = []
    train(tmp_path, steps=5, sample=lambda state: sampled.append(int(state.step)) or [], sample_every=2)
    assert sampled == [2, 4, 5]


def traced(workdir, settings):
    """Runs in a process of its own: the profiler looks at all threads, and crashes if another test's ends meanwhile."""
    code = (
        f"from pathlib import Path; from tests.train.test_loop import train; train(Path({str(workdir)!r}), {settings})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert list((workdir / "profile").rglob("*.xplane.pb")), done.stderr
    return done


def test_a_trace_of_chosen_steps_is_written(tmp_path):
    assert traced(tmp_path, "steps=4, profile=range(2, 4)").returncode == 0


def test_a_run_that_ends_early_writes_the_trace_it_began(tmp_path):
    assert "ValueError: step 3" in traced(tmp_path, "steps=9, profile=range(2, 8), unsound=[3]").stderr
