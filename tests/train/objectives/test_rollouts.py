"""Settings of rollouts that cannot work end in one line with a remedy."""

import dataclasses

import pytest

from qwen35_jax.sharding import MeshConfig
from tests.train.conftest import small_config
from train.config import DataConfig
from train.objectives.rollouts import RolloutConfig

DATA = DataConfig("train.jsonl", sequence_length=4096, sequences_per_batch=8)
TEXT = dataclasses.replace(small_config().text, max_position_embeddings=4096)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature=0 samples nothing: all answers to a prompt would be"),
        ({"temperature": -1.0}, "temperature=-1.0; give 0"),
        ({"top_p": 0.0}, "top_p=0.0; give a probability"),
        ({"fraction": 0.0}, "fraction=0.0 is no share; give a number above 0 and at most 1"),
        ({"fraction": 1.5}, "fraction=1.5 is no share"),
        ({"answers": 0}, "answers=0 must be at least 1"),
        ({"refresh": 0}, "refresh=0 must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"slots": 0}, "slots=0 must be at least 1"),
        ({"speculative_tokens": -1}, "speculative_tokens=-1 is negative"),
        ({"cache_tokens": 2047}, "cache_tokens=2047 holds no document of 2048 tokens .* raise it"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=rf"^rollouts\.{message}"):
        RolloutConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"fraction": 0.3}, {}, r"fraction=0.3 of data.sequences_per_batch=8 is no whole number .* such as 0.25"),
        ({"fraction": 0.01}, {}, r"fraction=0.01 of .* is no whole number .* such as 0.125"),
        ({"fraction": 0.5}, {"shards": 8}, r"leaves 4 sequences for the data, which cannot be dealt to data.shards=8"),
        ({}, {"sequence_length": 2047}, r"documents of up to 2048 tokens, but data.sequence_length=2047; .* to 2048"),
        ({"answers": 17}, {}, r"answers=17 to a prompt do not fit .* 8 sequences of 4096 tokens hold 16 documents"),
        ({}, {"epochs": 2}, r"data.epochs=2 counts documents .* say with --steps"),
    ],
)
def test_answers_that_do_not_fit_the_batches(changes, data, message):
    with pytest.raises(ValueError, match=message):
        RolloutConfig(**changes).check_data(dataclasses.replace(DATA, **data))


@pytest.mark.parametrize(
    ("changes", "mesh", "message"),
    [
        ({}, {"context": 2}, r"mesh.context=2; set it to 1"),
        ({"fraction": 0.75}, {"fsdp": 4}, r"leaves 2 sequences for the data, fewer than the 4 shares"),
        ({"cache_tokens": 4096}, {"data": 2, "fsdp": 2}, r"cache_tokens=4096 is divided .* raise it to 8192"),
    ],
)
def test_meshes_that_cannot_generate(changes, mesh, message):
    with pytest.raises(ValueError, match=message):
        RolloutConfig(**changes).check_mesh(MeshConfig(**mesh), DATA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_new_tokens": 4000},
            r"max_prompt_tokens=1024 and rollouts.max_new_tokens=4000 pass the model's 4096 positions",
        ),
        ({"top_k": 10**6}, r"top_k=1000000, but the model knows"),
    ],
)
def test_models_that_cannot_write_so(changes, message):
    with pytest.raises(ValueError, match=message):
        RolloutConfig(**changes).check_model(TEXT)


def test_drafts_need_a_head():
    without = dataclasses.replace(TEXT, mtp=dataclasses.replace(TEXT.mtp, num_hidden_layers=0))
    with pytest.raises(ValueError, match="speculative_tokens=2 needs an MTP head"):
        RolloutConfig(speculative_tokens=2).check_model(without)


@pytest.mark.parametrize(("changes", "prompts"), [({}, 4), ({"answers": 3}, 5), ({"fraction": 0.5}, 2)])
def test_a_batch_answers_as_many_prompts_as_certainly_fit(changes, prompts):
    settings = RolloutConfig(**changes)
    settings.check_data(DATA)
    settings.check_mesh(MeshConfig(fsdp=4), DATA)
    settings.check_model(TEXT)
    assert settings.num_prompts(DATA) == prompts
