"""The plan counts the memory that the engine of the rollouts holds."""

import dataclasses

import jax
import pytest

from configs.tiny_distill import config as tiny
from qwen35_jax.inference.engine import Engine
from tests.train.rollouts.conftest import SETTINGS
from train.plan_rollouts import rollout_bytes
from train.rollouts.sampler import engine_options


@pytest.mark.parametrize("changes", [{}, {"speculative_tokens": 2, "slots": 8}])
def test_the_plan_counts_the_memory_of_the_engine(setup, data, tokenizer, changes):
    settings = dataclasses.replace(SETTINGS, max_new_tokens=40, **changes)
    objective = dataclasses.replace(tiny().recipe.objective, rollouts=settings)
    config = tiny().replace(data=data, objective=objective)
    model = setup.model(setup.state)
    engine = Engine(model, tokenizer, **engine_options(settings, data, model))
    held = sum(x.nbytes for x in jax.tree.leaves((engine._runner._memory, engine._runner._slots)))
    # Counters of the slots and room for text are left out of the plan.
    assert held == pytest.approx(rollout_bytes(config, setup), rel=0.03)
    assert rollout_bytes(tiny(), setup) == 0
