"""The operations of a token against the number of weights of the 2B model."""

import dataclasses

import pytest
from flax import nnx

from qwen35_jax.config import MTPConfig
from qwen35_jax.model import Qwen35
from qwen35_jax.planning.flops import forward_flops_per_token, training_flops_per_token, vision_flops_per_patch
from qwen35_jax.presets import PRESETS

CONFIG = PRESETS["2b"]


@pytest.fixture(scope="module")
def weights() -> dict[str, int]:
    """Numbers of parameters of 2B that are factors of products, counted from the shapes of the real model."""
    model = nnx.eval_shape(lambda: Qwen35(CONFIG, vision=False, rngs=nnx.Rngs(0)))
    counts = {"trunk": 0, "mtp": 0, "head": 0}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        shape = variable.shape[1:] if path[0] == "layers" else variable.shape
        if path[0] == "embed_tokens":
            counts["head"] += variable.size
        elif len(shape) == 2:
            counts["mtp" if path[0] == "mtp" else "trunk"] += variable.size
    return counts


def forward(tokens: int, **more) -> float:
    return forward_flops_per_token(CONFIG, sequence_length=tokens, **more)


def training(tokens: int, *, adapters: bool, mtp_steps: int = 0) -> float:
    return training_flops_per_token(CONFIG, sequence_length=tokens, adapters=adapters, mtp_steps=mtp_steps)


def activations(tokens: int) -> float:
    """6 attention layers of 8 heads of 256, 18 delta rules of 16 heads of 128 x 128."""
    return 6 * 4 * 8 * 256 * (tokens + 1) / 2 + 18 * 6 * 16 * 128 * 128


def test_a_forward_pass_multiplies_by_every_weight_once(weights):
    want = 2 * (weights["trunk"] + weights["head"]) + activations(4096)
    assert forward(4096) == pytest.approx(want, rel=1e-12)
    # The rule of thumb: two operations a parameter, of which there are about 1.9e9 without the MTP head.
    assert forward(1) / 2 == pytest.approx(1.9e9, rel=0.03)


def test_a_step_of_the_mtp_head_has_its_own_output_head(weights):
    want = 2 * (weights["mtp"] + weights["head"]) + 4 * 8 * 256 * 4097 / 2
    assert forward(4096, mtp_steps=1) - forward(4096) == pytest.approx(want, rel=1e-12)
    assert forward(4096, mtp_steps=3) - forward(4096) == pytest.approx(3 * want, rel=1e-12)


def test_frozen_weights_have_no_gradients(weights):
    assert training(4096, adapters=False, mtp_steps=1) == pytest.approx(3 * forward(4096, mtp_steps=1), rel=1e-12)
    saved = training(4096, adapters=False) - training(4096, adapters=True)
    assert saved == pytest.approx(2 * (weights["trunk"] + weights["head"]), rel=1e-12)


def test_only_the_work_of_attention_grows_with_the_length():
    assert forward(8192) - forward(4096) == pytest.approx(6 * 4 * 8 * 256 * 2048, rel=1e-12)


@pytest.mark.parametrize("arguments", [{"sequence_length": 0}, {"sequence_length": 8, "mtp_steps": -1}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="at least 1 and 0"):
        forward_flops_per_token(CONFIG, **arguments)


def test_models_that_cannot_be_counted_are_refused():
    text = dataclasses.replace(CONFIG.text, mtp=MTPConfig(num_hidden_layers=0))
    with pytest.raises(ValueError, match="no MTP head"):
        forward_flops_per_token(dataclasses.replace(CONFIG, text=text), sequence_length=8, mtp_steps=1)
    with pytest.raises(ValueError, match="has experts"):
        forward_flops_per_token(PRESETS["35b-a3b"], sequence_length=8)


def test_a_patch_is_multiplied_by_every_weight_of_the_tower_once():
    model = nnx.eval_shape(lambda: Qwen35(CONFIG, rngs=nnx.Rngs(0)))
    per_patch = 0
    for path, variable in nnx.to_flat_state(nnx.state(model.vision)):
        matrix = variable.shape[1:] if path[0] == "blocks" else variable.shape
        if path[0] != "pos_embed" and len(matrix) > 1:
            per_patch += 2 * variable.size / (4 if "merger" in path[0] else 1)
    attention = 24 * 4 * 1024 * 256
    assert vision_flops_per_patch(CONFIG.vision, frame_patches=256) == pytest.approx(per_patch + attention, rel=1e-12)
