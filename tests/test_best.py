"""Which step is the best: how the goal is written, ties, and what a run directory must hold."""

import json

import pytest

from qwen35_jax.best import Goal, best_step, choose_best


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("eval_loss", Goal("eval_loss", maximise=False)),
        ("min:eval_loss", Goal("eval_loss", maximise=False)),
        ("max:eval_accuracy", Goal("eval_accuracy", maximise=True)),
    ],
)
def test_a_goal_is_a_figure_and_a_direction(text, goal):
    assert Goal.parse(text) == goal


@pytest.mark.parametrize("text", ["loss", "", "max:", "max:accuracy", "most:eval_x", "eval_", "max:max:eval_x"])
def test_other_goals_are_refused(text):
    with pytest.raises(ValueError, match=r"checkpoint.best_by='.*' names no figure .* max:eval_accuracy"):
        Goal.parse(text)


def test_the_earliest_of_equals_is_best_and_what_is_not_finite_never():
    assert choose_best({2: 1.0, 4: 0.5, 6: 0.5}, [2, 4, 6]) == 4
    assert choose_best({2: 1.0, 4: 0.5}, [2, 8]) == 2
    assert choose_best({2: 1.0}, [3]) is None
    goal = Goal("eval_x", maximise=True)
    assert goal.score(3.0) == -3.0
    assert goal.score(None) == goal.score(float("nan")) == goal.score(float("-inf")) == float("inf")


def record(best_by):
    return {"options": {"checkpoint": {"best_by": best_by}}}


def test_the_best_step_of_a_directory_is_the_best_of_those_that_are_saved(tmp_path):
    entries = [{"step": 1}, {"step": 2, "eval_x": 0.1}, {"step": 3, "eval_x": None}, {"step": 4, "eval_x": 0.3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"step": 5, "ev')
    assert best_step(tmp_path, record("eval_x"), [2, 4]) == 2
    assert best_step(tmp_path, record("max:eval_x"), [2, 4]) == 4
    assert best_step(tmp_path, record("max:eval_x"), [1, 2]) == 2
    with pytest.raises(ValueError, match=r"no checkpoint of .* has eval_y"):
        best_step(tmp_path, record("eval_y"), [2, 4])
    for other in ({}, record(None)):
        with pytest.raises(ValueError, match=r"without checkpoint.best_by.* give --step N"):
            best_step(tmp_path, other, [2])
