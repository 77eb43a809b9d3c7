"""Other people's config.json: read as transformers reads it, or refused by name in one line."""

import copy
import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen35_jax.config import FULL, LINEAR, ModelConfig, TextConfig, VisionConfig
from qwen35_jax.presets import PRESETS

TINY = PRESETS["tiny"].to_hf()
TEXT_ONLY = dataclasses.replace(PRESETS["tiny"], vision=None, architecture="Qwen3_5ForCausalLM").to_hf()


def _with(path, value, content=TINY):
    """Returns a copy of the configuration with another value at a path; ``...`` removes the key."""
    content = copy.deepcopy(content)
    *parents, key = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return content


def _their_config(content):
    transformers = pytest.importorskip("transformers", reason="reads configurations with transformers")
    config = transformers.Qwen3_5Config if "text_config" in content else transformers.Qwen3_5TextConfig
    content = copy.deepcopy(content)  # transformers changes what it is given
    return config(**{key: value for key, value in content.items() if key not in ("architectures", "model_type")})


@pytest.mark.parametrize("content", [TINY, TEXT_ONLY], ids=["with vision", "text only"])
@pytest.mark.parametrize("full", [False, True], ids=["differences", "defaults too"])
def test_what_transformers_writes(content, full):
    theirs = _their_config(content)
    theirs.architectures = content["architectures"]
    written = json.loads(theirs.to_json_string(use_diff=not full))
    assert len(written) > len(content) or not full
    ours = ModelConfig.from_hf(written)
    assert ours == dataclasses.replace(ModelConfig.from_hf(content), transformers_version=ours.transformers_version)


ROPE = TINY["text_config"]["rope_parameters"]
SECTIONS = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}


@pytest.mark.parametrize(
    "text",
    [
        {"rope_parameters": ROPE},
        {"rope_scaling": ROPE},
        {"rope_parameters": None, "rope_scaling": {"type": "default", **SECTIONS}, "rope_theta": 5000.0},
        {"rope_parameters": SECTIONS, "rope_theta": 5000.0, "partial_rotary_factor": 0.25},
        {"rope_parameters": {**SECTIONS, "rope_theta": 70.0}, "rope_theta": 5000.0},
        # The older name goes before the newer.
        {"rope_parameters": ROPE, "rope_scaling": {"rope_type": "default", "rope_theta": 300.0, **SECTIONS}},
        {"rope_parameters": ROPE, "rope_scaling": None},
        {"rope_parameters": ROPE, "rope_scaling": {}},
    ],
)
def test_spellings_of_the_rotary_embedding(text):
    content = _with("text_config.rope_parameters", ...)
    content["text_config"] |= copy.deepcopy(text)
    ours = ModelConfig.from_hf(content).text.rope
    theirs = _their_config(content).text_config.rope_parameters
    assert ours.rope_theta == theirs["rope_theta"]
    assert ours.partial_rotary_factor == theirs["partial_rotary_factor"]
    assert list(ours.mrope_section) == theirs["mrope_section"]
    assert theirs["rope_type"] == "default"


def test_older_spellings():
    content = _with("text_config.dtype", ...)
    content["text_config"] |= {"torch_dtype": "float32", "eos_token_id": [248046, 248044], "pad_token_id": None}
    text = ModelConfig.from_hf(content).text
    assert text.dtype == "float32" and text.eos_token_id == (248046, 248044)
    content = _with("text_config.layer_types", ...)
    content["text_config"] |= {"full_attention_interval": 2}
    assert ModelConfig.from_hf(content).text.layer_types == (LINEAR, FULL) * 4
    assert list(_their_config(content).text_config.layer_types) == [LINEAR, FULL] * 4


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("text_config.rope_scaling", YARN, r"rope_scaling=.*'yarn'.*only 'default' is"),
        ("text_config.rope_scaling", {"type": "yarn", "factor": 4.0}, "rope_type='yarn'"),
        ("text_config.rope_scaling", {"type": "linear", "factor": 2.0}, "rope_type='linear'"),
        ("text_config.rope_scaling", {"rope_type": "dynamic", "factor": 2.0}, "rope_type='dynamic'"),
        ("text_config.rope_scaling", "yarn", "rope_scaling='yarn'; expected an object"),
        ("text_config.rope_parameters", ROPE | YARN, r"rope_parameters=.*rope_type='yarn'"),
        ("text_config.rope_parameters", ROPE | {"factor": 4.0}, r"rope_parameters has factor=4.0"),
        ("text_config.rope_parameters", {"full_attention": ROPE}, "rope_parameters has full_attention="),
        ("text_config.rope_parameters.rope_theta", ..., "no rope_parameters with a rope_theta"),
        ("rope_scaling", YARN, "the configuration has rope_scaling="),
        ("quantization_config", {"quant_method": "fp8"}, "quantization_config=.*not quantised"),
        ("text_config.quantization_config", {"bits": 4}, "text_config has quantization_config="),
        ("text_config.sliding_window", 4096, "text_config has sliding_window=4096"),
        ("text_config.use_something_new", True, "text_config has use_something_new=True"),
        ("text_config.num_experts", 8, "text_config has num_experts=8"),
        ("text_config.attention_dropout", 0.1, "attention_dropout=0.1 is not supported"),
        ("text_config.model_type", "llama", "text_config has model_type='llama'"),
        ("vision_config.window_size", 112, "vision_config has window_size=112"),
        ("vision_config.rope_parameters", {"rope_type": "axial", "rope_theta": 1.0}, "vision_config has rope_param"),
        ("text_config.hidden_size", "64", "hidden_size='64' is not of the right type; expected a whole number"),
        ("text_config.rms_norm_eps", "small", "rms_norm_eps='small' is not of the right type; expected a number"),
        ("text_config.layer_types", 3, "layer_types=3 is not of the right type; expected a list of a text"),
        ("text_config.num_attention_heads", 0, "num_attention_heads=0 must be at least 1"),
        ("text_config.intermediate_size", ..., "lacks intermediate_size"),
        ("text_config", [], "needs text_config and vision_config"),
        ("architectures", "Qwen3_5ForCausalLM", "architectures=Qwen3_5ForCausalLM; supported"),
    ],
)  # fmt: skip
def test_what_another_reader_obeys_is_refused_by_name(path, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.from_hf(_with(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text_config.sliding_window", None),
        ("text_config.use_sliding_window", False),
        ("text_config.rope_scaling", None),
        ("text_config.mlp_only_layers", []),
        ("pruned_heads", {}),
        ("_name_or_path", "somewhere"),
        ("torch_dtype", "bfloat16"),
        ("use_cache", False),
        ("eos_token_id", 248046),
        ("text_config.temperature", 0.7),
        ("text_config.bos_token_id", 248044),
        ("vision_config.model_type", "qwen3_5_vision"),
        ("vision_config.rope_parameters", {"rope_type": "axial", "rope_theta": 10000.0}),
        ("text_config.rope_theta", 5.0),  # rope_parameters has its own
    ],
)
def test_what_changes_nothing_passes(path, value):
    assert ModelConfig.from_hf(_with(path, value)) == PRESETS["tiny"]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(["", "silu", "yarn", LINEAR]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "factor"]), inner, max_size=2),
    max_leaves=4,
)
names = sorted(
    {field.name for cls in (TextConfig, VisionConfig) for field in dataclasses.fields(cls)} | TINY.keys() | {"new_key"}
)
paths = st.builds("".join, st.tuples(st.sampled_from(["", "text_config.", "vision_config."]), st.sampled_from(names)))
rope_paths = st.sampled_from([f"text_config.rope_parameters.{key}" for key in (*ROPE, "type", "factor")])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(path=paths | rope_paths, value=values | st.just(...))
def test_any_value_anywhere_is_read_or_refused_in_one_line(path, value):
    content = copy.deepcopy(TINY)
    with_default = content if value is not ... else _with(path, None)
    try:
        ours = ModelConfig.from_hf(_with(path, value, with_default))
    except ValueError as err:
        assert "\n" not in str(err)
        return
    # What is read is what is computed with: it comes back as it was, up to what null and absence stand for.
    assert ModelConfig.from_hf(json.loads(json.dumps(ours.to_hf()))) == ours
