"""The configuration reads and writes Hugging Face's config.json, and refuses what the code cannot honour."""

import copy
import dataclasses
import json

import pytest

from qwen35_jax.config import FULL, LINEAR, ModelConfig
from qwen35_jax.presets import PRESETS
from tests.conftest import PUBLISHED

SIZES = [name for name in PRESETS if name != "tiny"]


@pytest.mark.parametrize("name", SIZES)
def test_published_files_survive_the_round_trip(name):
    (path,) = (p for p in PUBLISHED.glob("config_*.json") if p.stem.lower() == f"config_{name}")
    config = ModelConfig.from_hf(path)
    assert config == PRESETS[name]
    # Not only equal as a dictionary: the keys come in the same order too.
    assert json.dumps(config.to_hf()) == json.dumps(json.loads(path.read_text()))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_round_trip(name):
    assert ModelConfig.from_hf(PRESETS[name].to_hf()) == PRESETS[name]


@pytest.mark.parametrize(
    ("name", "periods", "key_dim", "conv_dim", "tied"),
    [
        ("0.8b", 6, 2048, 6144, True),
        ("2b", 6, 2048, 6144, True),
        ("9b", 8, 2048, 8192, False),
        ("27b", 16, 2048, 10240, False),
    ],
)
def test_derived_sizes_are_those_of_the_published_models(name, periods, key_dim, conv_dim, tied):
    config = PRESETS[name]
    text = config.text
    assert (text.period, text.num_periods, text.rotary_dim) == (4, periods, 64)
    assert (text.key_dim, text.conv_dim, config.tie_word_embeddings) == (key_dim, conv_dim, tied)


def test_text_only_layout_round_trips():
    config = dataclasses.replace(PRESETS["tiny"], vision=None, architecture="Qwen3_5ForCausalLM")
    content = config.to_hf()
    assert content["model_type"] == "qwen3_5_text"
    assert ModelConfig.from_hf(content).text == config.text


def test_only_the_top_level_ties_the_head():
    content = PRESETS["9b"].to_hf()
    content["text_config"]["tie_word_embeddings"] = True
    assert not ModelConfig.from_hf(content).tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM.*supported"),
        ({"text_config.hidden_size": None}, "lacks hidden_size"),
        ({"text_config.layer_types": [LINEAR, FULL, FULL] + [LINEAR] * 5}, "does not repeat"),
        ({"text_config.layer_types": [LINEAR] * 8}, "no 'full_attention' layer"),
        ({"text_config.layer_types": ["sliding_attention"] * 8}, "sliding_attention"),
        ({"text_config.num_hidden_layers": 7}, "8 entries for num_hidden_layers=7"),
        ({"text_config.hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"text_config.attn_output_gate": False}, "attn_output_gate=False"),
        ({"text_config.linear_num_value_heads": 5}, "not a multiple"),
        ({"text_config.mtp_num_hidden_layers": 2}, "0 or 1 MTP layers"),
        ({"text_config.rope_parameters.rope_type": "yarn"}, "rope_type='yarn'"),
        ({"text_config.rope_parameters.mrope_section": [3, 1, 1]}, "sums to 5"),
        ({"text_config.mlp_only_layers": [1]}, "mlp_only_layers"),
        ({"vision_config": None}, "needs text_config and vision_config"),
    ],
)
def test_what_is_not_supported_is_refused(change, message):
    content = copy.deepcopy(PRESETS["tiny"].to_hf())
    for path, value in change.items():
        *parents, key = path.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[key]
        else:
            place[key] = value
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(content)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        ModelConfig.from_hf(tmp_path)


def test_an_adapter_given_as_a_model_points_to_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="An adapter lies there; give its base model here"):
        ModelConfig.from_hf(tmp_path)
