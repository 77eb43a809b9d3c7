"""The best evaluation and early stopping: functions of the figures alone, so that a resumed run decides alike."""

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from qwen35_jax.best import Goal
from qwen35_jax.cli import main
from tests.train.launching import LORA, kill, timeless, wait_for_save
from train.best import Best, make_outcome
from train.config import CheckpointConfig, DataConfig, EarlyStopConfig, ModelSource, Recipe, TrainConfig

LOSS = Goal("eval_loss", maximise=False)
FIGURES = st.lists(st.none() | st.integers(0, 8).map(lambda tenths: tenths / 8), max_size=12)


def follow(values, patience=None, min_delta=0.0, goal=LOSS):
    """Returns after which evaluations (from 1) there was a new best, and after which the run stops."""
    best, improved = Best(goal, EarlyStopConfig(patience, min_delta)), []
    for number, value in enumerate(values, start=1):
        if best.add(number, {goal.metric: value}):
            improved.append(number)
        if best.is_exhausted:
            return improved, number
    return improved, None


@pytest.mark.parametrize(
    ("values", "settings", "improved", "stops"),
    [
        ([3, 2, 1], {"patience": 1}, [1, 2, 3], None),
        ([1, 2, 3], {"patience": 2}, [1], 3),
        ([1, 2, 0.5, 2, 3], {"patience": 2}, [1, 3], 5),
        ([1, 1], {"patience": 1}, [1], 2),
        # Each step is the best so far, but none by enough; together they are.
        ([1, 0.9, 0.8], {"patience": 2, "min_delta": 0.2}, [1, 2, 3], None),
        ([1, 0.95, 0.9], {"patience": 2, "min_delta": 0.2}, [1, 2, 3], 3),
        ([None, 1, None], {"patience": 2}, [2], None),
        ([None, None], {"patience": 2}, [], 2),
        ([1, 2, 3], {}, [1], None),
        ([0.1, 0.3, 0.2], {"goal": Goal("eval_x", maximise=True), "patience": 1}, [1, 2], 3),
    ],
)
def test_the_best_and_the_end(values, settings, improved, stops):
    assert follow(values, **settings) == (improved, stops)


@given(FIGURES, FIGURES, st.integers(1, 3), st.sampled_from([0.0, 0.25]))
def test_a_run_that_resumes_decides_as_if_it_had_not_stopped(before, after, patience, min_delta):
    settings = EarlyStopConfig(patience, min_delta)
    whole, past, kept = Best(LOSS, settings), [], None
    for step, value in enumerate(before, start=1):
        kept = step if whole.add(step, {"eval_loss": value}) else kept
        past += [{"step": step, "eval_loss": value}]
    # Of the evaluated steps only the best and the last are saved for certain.
    resumed = Best(LOSS, settings, past, {kept, len(before)})
    for step, value in enumerate(after, start=len(before) + 1):
        assert resumed.is_exhausted == whole.is_exhausted and resumed.step == whole.step
        assert resumed.add(step, {"eval_loss": value}) == whole.add(step, {"eval_loss": value})
    assert resumed.is_exhausted == whole.is_exhausted and resumed.step == whole.step
    finite = [value for value in (*before, *after) if value is not None]
    assert not finite or whole.value == min(finite)


def test_a_best_step_that_was_not_saved_does_not_count():
    past = [{"step": 2, "eval_loss": 0.1}, {"step": 3}, {"step": 4, "eval_loss": 0.5}]
    best = Best(LOSS, EarlyStopConfig(), past, [4])
    assert best.step == 4 and best.add(6, {"eval_loss": 0.4})


def test_a_figure_that_an_evaluation_lacks_is_named_with_those_it_has():
    with pytest.raises(ValueError, match=r"best_by names eval_loss, but .* step 7 gave eval_x, eval_y; choose"):
        Best(LOSS, EarlyStopConfig()).add(7, {"eval_x": 1, "eval_y": 2, "evaluation_seconds": 3})


DATA = DataConfig("x.jsonl", sequence_length=8, eval_fraction=0.5)
CONFIG = TrainConfig(Recipe(ModelSource("base"), DATA, steps=9))


def test_the_outcome_says_what_was_best_and_whether_the_run_stopped_early():
    best = Best(LOSS, EarlyStopConfig(1))
    assert make_outcome(CONFIG, 9, None) == make_outcome(CONFIG, 9, best) == {"last_step": 9}
    best.add(2, {"eval_loss": 0.5})
    best.add(4, {"eval_loss": 0.6})
    assert make_outcome(CONFIG, 4, best) == {"last_step": 4, "best": {"step": 2, "eval_loss": 0.5},
                                             "stopped_early": True}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": {"best_by": "eval_los"}}, "best_by='eval_los' is no figure .* eval_loss, eval_mtp_loss"),
        (
            {"checkpoint": {"best_by": "eval_loss"}, "data": DataConfig("x")},
            "give validation data, such as --data.eval-",
        ),
        ({"checkpoint": {"best_by": "loss"}}, "best_by='loss' names no figure"),
        ({"checkpoint": {"keep_every": 150}}, r"keep_every=150 must be a multiple of checkpoint.every=100"),
        ({"early_stop": {"patience": 3}}, r"early_stop.patience needs .* --checkpoint.best-by eval_loss"),
        ({"early_stop": {"patience": 0}}, r"early_stop.patience=0"),
        ({"early_stop": {"min_delta": -1}}, r"early_stop.min_delta=-1"),
        ({"early_stop": {"min_delta": math.nan}}, r"early_stop.min_delta=nan"),
        ({"export_best": True}, r"export_best needs"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    classes = {"checkpoint": CheckpointConfig, "early_stop": EarlyStopConfig}
    with pytest.raises(ValueError, match=message):
        CONFIG.replace(**{
            name: classes[name](**value) if name in classes else value for name, value in changes.items()
        })  # fmt: skip


SIZED = """
import jax
from flax import nnx
from configs.tiny_sft import config as tiny

def size(model, tokenizer):
    return {"size": sum(float(abs(x).sum()) for x in jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))}

def config():
    return tiny().replace(evaluate=size)
"""
# The adapters grow with every step, so the first evaluation is the best.
STOPPING = (
    *LORA, "--checkpoint.every", "100", "--checkpoint.keep", "1", "--evaluate-every", "2", "--export-best",
    "--checkpoint.best-by", "eval_size", "--early-stop.patience", "2",
)  # fmt: skip


def test_a_run_stops_early_keeps_its_best_and_exports_it(command, tmp_path):
    (tmp_path / "sized.py").write_text(SIZED)
    workdir, config = tmp_path / "run", str(tmp_path / "sized.py")
    out = command.run(workdir, *STOPPING, config=config)
    assert "stopped early after step 6: 2 evaluations without a better one" in out
    assert "the export is of the best step: step 2 is the best, with eval_size" in out
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "6"]
    outcome = json.loads((workdir / "config.json").read_text())["outcome"]
    assert (outcome["last_step"], outcome["stopped_early"], outcome["best"]["step"]) == (6, True, 2)
    before, exported = timeless(workdir), load_file(workdir / "export" / "adapter_model.safetensors")
    assert outcome["best"]["eval_size"] == before[1]["eval_size"] < before[3]["eval_size"]
    out = command.run(workdir, *STOPPING, config=config)
    assert "is complete: it stopped early after step 6; step 2 is the best" in out
    assert timeless(workdir) == before
    for step, same in (("best", True), ("6", False)):
        main(["export", str(workdir), "--step", step, "--out", str(tmp_path / step)])
        for name, value in load_file(tmp_path / step / "adapter_model.safetensors").items():
            assert np.array_equal(value, exported[name]) == same, name


@pytest.mark.slow
def test_a_killed_run_stops_where_the_whole_one_does_and_more_patience_goes_on(command, tmp_path):
    (tmp_path / "sized.py").write_text(SIZED)
    where = {"config": str(tmp_path / "sized.py")}
    command.run(tmp_path / "whole", *STOPPING, **where)
    workdir = tmp_path / "killed"
    processes = command.start(workdir, *STOPPING, **where)
    wait_for_save(processes, workdir, 2)
    kill(processes)
    assert "resumed after step 2" in command.run(workdir, *STOPPING, **where)
    assert timeless(workdir) == timeless(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    command.run(workdir, *STOPPING, "--early-stop.patience", "9", **where)
    assert [row["step"] for row in timeless(workdir)] == list(range(1, 10))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "9"]
