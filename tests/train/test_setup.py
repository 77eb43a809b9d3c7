"""How a model is made is told in one place."""

import pytest

from train.config import DataConfig, LoraConfig, ModelSource, Recipe, TrainConfig
from train.setup import model_options

CONFIG = TrainConfig(Recipe(ModelSource("base"), DataConfig("train.jsonl"), steps=10))


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"dtype": "bfloat16", "param_dtype": "float32", "delta_rule": "auto"}),
        ({"lora": LoraConfig()}, {"dtype": "bfloat16", "param_dtype": "bfloat16", "delta_rule": "auto"}),
        ({"delta_rule": "kernel"}, {"dtype": "bfloat16", "param_dtype": "float32", "delta_rule": "kernel"}),
    ],
)
def test_the_model_gets_its_dtypes_and_a_chosen_form_of_the_delta_rule(changes, options):
    assert model_options(CONFIG.replace(**changes)) == {**options, "vision": False}
