"""A tiny model in training that answers, and what makes batches of its answers."""

import dataclasses

import jax
import pytest

from configs.tiny_sft import config as tiny
from qwen35_jax.processing import Tokenizer
from train.config import DataConfig, ModelSource
from train.data import shards
from train.objectives.rollouts import RolloutConfig
from train.rollouts import RolloutBatches
from train.run import build

# Two documents of the greatest length fit a sequence of 96 tokens.
SETTINGS = RolloutConfig(answers=2, max_prompt_tokens=40, max_new_tokens=8, slots=4)
SEED = 5


@pytest.fixture(autouse=True)
def little_is_read_ahead(monkeypatch):
    """Tests restart often, which throws away what was read ahead. How much that is decides nothing."""
    monkeypatch.setattr(shards, "_MAX_DOCUMENTS_AHEAD", 16)


@pytest.fixture(scope="session")
def data(inputs):
    return DataConfig(str(inputs / "train.jsonl"), sequence_length=96, sequences_per_batch=4, num_threads=1)


@pytest.fixture(scope="session")
def tokenizer(inputs):
    return Tokenizer.from_pretrained(inputs / "base")


@pytest.fixture(scope="session")
def setup(inputs, data, mesh):
    config = tiny().replace(model=ModelSource(str(inputs / "base"), dtype="float32"), data=data)
    with jax.set_mesh(mesh):
        return build(config, inputs / "base", mesh)


@pytest.fixture(scope="session")
def moved(setup):
    """A later state, whose adapters answer otherwise."""
    params = jax.tree.map(lambda x: x + 0.5, setup.state.params)
    return setup.state._replace(params=params, step=setup.state.step + 1)


@pytest.fixture
def make(data, tokenizer, setup):
    """Returns what makes batches, with other settings than those above."""

    def make(*, sequences=None, data=data, **changes):
        settings = dataclasses.replace(SETTINGS, **changes)
        batches = RolloutBatches(data, settings, tokenizer, sequences, seed=SEED)
        batches.sample_from(setup.model)
        return batches

    return make


@pytest.fixture
def take():
    """Returns what takes the batches of some states, one each."""

    def take(batches, states):
        taken = []
        for state in states:
            batches.see(state)
            taken.append(next(batches))
        return taken

    return take
