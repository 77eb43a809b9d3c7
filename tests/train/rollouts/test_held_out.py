"""Prompts of the validation data: which are answered, how the answers are laid out, and what is told of them."""

import dataclasses
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.train.rollouts.conftest import SETTINGS
from train.data.documents import Documents
from train.data.validation import read_validation
from train.observe.health import new_health
from train.rollouts import HeldOutPrompts
from train.rollouts.rollout import Rollout
from train.state import TrainState

STATE = TrainState(jnp.int32(0), nnx.State({}), (), new_health())


def answer(state, prompts):
    """Stands for the engine: each answer says which prompt it is to."""
    assert state is STATE
    return [Rollout(each, 0, np.full(3, each.position + 1, np.int32), np.full(3, -1, np.float32)) for each in prompts]


@pytest.fixture
def held_out(data, tokenizer):
    half = dataclasses.replace(data, eval_fraction=0.5)

    def held_out(sequences=range(4), *, data=half, **changes):
        validation = read_validation(data, tokenizer, sequences, Documents(data, tokenizer))
        settings = dataclasses.replace(SETTINGS, **changes)
        return HeldOutPrompts(validation, settings, data, tokenizer, sequences, answer), validation

    return held_out


def test_the_first_prompts_that_fit_are_answered_and_fill_as_many_batches_as_they_need(held_out):
    prompts, _ = held_out(eval_prompts=10)
    assert len(prompts.prompts) == 10
    lengths = [len(each.token_ids) for each in prompts.prompts]
    shorter, _ = held_out(eval_prompts=10, max_prompt_tokens=min(lengths))
    assert {len(each.token_ids) for each in shorter.prompts} == {min(lengths)}
    # Four sequences of two documents of the greatest length.
    batches, figures = prompts.sample(STATE)
    assert len(batches) == 2 and figures["rollout_length_mean"] == 3 and figures["rollout_truncated"] == 1
    assert "rollout_staleness" not in figures and "rollout_distinct" not in figures
    told = [int(ids) for batch in batches for ids in batch["input_ids"][batch["trained"]][::3]]
    assert sorted(told) == [each.position + 1 for each in prompts.prompts]
    # Each of two processes lays out its half of every batch.
    halves = [held_out(part, eval_prompts=10)[0].sample(STATE).batches for part in (range(2), range(2, 4))]
    for batch, *both in zip(batches, *halves, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, np.concatenate([half[name] for half in both]))


def test_validation_data_without_prompts_are_told_of(held_out, data, tmp_path, caplog):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": "one two three"}) + "\n" for _ in range(4)))
    with caplog.at_level(logging.INFO):
        prompts, _ = held_out(data=dataclasses.replace(data, eval_path=str(path)))
    assert not prompts.prompts and "no validation row gives a prompt" in caplog.text
    caplog.clear()
    assert not held_out(eval_prompts=0)[0].prompts and "prompt" not in caplog.text
