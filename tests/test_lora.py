"""Adapters: where they go, what they start as, and that merging keeps the function."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from qwen35_jax import lora
from qwen35_jax.config import FULL, LINEAR
from qwen35_jax.hf.names import module_of, tensor_table
from qwen35_jax.model import Qwen35
from tests.reference import tiny_config

IDS = np.random.default_rng(0).integers(0, 512, (2, 9))


def _model(**changes):
    config = tiny_config(num_hidden_layers=4, layer_types=(LINEAR, FULL) * 2, **changes)
    return Qwen35(config, dtype=jnp.float32, rngs=nnx.Rngs(0))


def _randomize(model):
    rng = np.random.default_rng(1)
    for _, layer in lora.adapted_layers(model):
        for factor in (layer.lora_a, layer.lora_b):
            factor.set_value(jnp.asarray(0.05 * rng.standard_normal(factor.shape), jnp.float32))


def test_groups_and_table():
    model = _model()
    matches = lora.add(model, lora.LoraConfig(rank=4, targets=("deltanet", "attention", "mtp")), seed=0)
    assert [(match.group, match.module) for match in matches if match.group == "attention"] == [
        ("attention", f"self_attn.{name}_proj") for name in "koqv"
    ]
    assert {match.module: match.count for match in matches if match.group == "deltanet"} == {
        f"linear_attn.{name}": 2 for name in ("in_proj_a", "in_proj_b", "in_proj_qkv", "in_proj_z", "out_proj")
    }
    assert {match.module for match in matches if match.group == "mtp"} >= {"mtp.fc", "mtp.layers.0.mlp.up_proj"}
    q_proj = next(match for match in matches if match.module == "self_attn.q_proj")
    assert (q_proj.count, q_proj.shape, q_proj.parameters) == (2, (64, 256), 2 * 4 * (64 + 256))
    assert lora.count(model) == sum(match.parameters for match in matches)
    assert model.layers[0].mlp.up_proj.lora_a is None and model.embed_tokens.lora_a is None


def test_initial_values():
    model, again, other = _model(), _model(), _model()
    config = lora.LoraConfig(rank=4, targets=lora.GROUPS)
    for each, seed in ((model, 0), (again, 0), (other, 1)):
        lora.add(each, config, seed=seed)
    layer = model.layers[0].mlp.down_proj
    assert layer.lora_a.dtype == layer.lora_b.dtype == jnp.float32
    # Uniform within 1 / sqrt(in): half the bound is the mean size, and the bound is nearly reached.
    bound = 96**-0.5
    assert 0.95 * bound < jnp.abs(layer.lora_a[...]).max() <= bound
    np.testing.assert_allclose(jnp.abs(layer.lora_a[...]).mean(), bound / 2, rtol=0.1)
    assert not layer.lora_b[...].any()
    assert not model.embed_tokens.lora_a[...].any() and model.embed_tokens.lora_b[...].any()
    np.testing.assert_array_equal(layer.lora_a[...], again.layers[0].mlp.down_proj.lora_a[...])
    assert (layer.lora_a[...] != other.layers[0].mlp.down_proj.lora_a[...]).any()
    assert (layer.lora_a[...] != model.layers[1].mlp.down_proj.lora_a[...]).any()


def test_by_default_every_linear_layer_is_adapted_and_the_embedding_is_not():
    model = _model()
    assert {match.group for match in lora.add(model, lora.LoraConfig(), seed=0)} == {
        "attention", "deltanet", "mlp", "mtp",
    }  # fmt: skip
    headless = _model()
    headless.mtp = nnx.data(None)
    assert "mtp" not in {match.group for match in lora.add(headless, lora.LoraConfig(), seed=0)}


def test_names_are_those_of_the_checkpoint():
    model = _model()
    specs = [spec for spec in tensor_table(model.config).values() if spec.name.endswith(".weight")]
    table = {(spec.layer_path, spec.index): module_of(spec.name.removesuffix(".weight")) for spec in specs}
    modules = dict(lora.all_modules(model))
    assert modules and {place: module.name for place, module in modules.items()} == {
        place: table[place] for place in modules
    }


def test_layers_of_a_stack_that_are_not_chosen_stay_as_they_are():
    """Their factors are zero, so are the gradients, and a step of the optimizer with decay changes neither."""
    model = _model()
    # Layers 0, 2 and 1, 3 are stacked; one of each is chosen.
    [up, q_proj] = lora.add(
        model, lora.LoraConfig(rank=4, targets=("layers.2.mlp.up_proj", r".*\.1\..*q_proj")), seed=0
    )[::-1]
    assert (up.module, up.count, q_proj.module, q_proj.count) == ("mlp.up_proj", 1, "self_attn.q_proj", 1)
    assert up.parameters == 4 * sum(up.shape)
    graphdef, adapters, rest = nnx.split(model, nnx.LoRAParam, ...)

    def loss(adapters):
        hidden, _ = nnx.merge(graphdef, adapters, rest, copy=True).forward(jnp.asarray(IDS))
        return jnp.sum(jnp.square(hidden))

    tx = optax.adamw(0.1, weight_decay=0.1)
    opt_state = tx.init(adapters)
    for _ in range(2):
        updates, opt_state = tx.update(jax.grad(loss)(adapters), opt_state, adapters)
        adapters = optax.apply_updates(adapters, updates)
    trained = nnx.merge(graphdef, adapters, rest)
    for layer, chosen, other in (
        (trained.layers[0].mlp.up_proj, 1, 0),
        (trained.layers[1].self_attn.q_proj, 0, 1),
    ):
        assert jnp.all(layer.lora_b[chosen] != 0)
        assert not layer.lora_a[other].any() and not layer.lora_b[other].any()
    assert trained.layers[1].mlp.up_proj.lora_a is None


def test_scale():
    assert lora.LoraConfig(rank=16, alpha=32).scale == 2
    assert lora.LoraConfig(rank=16, alpha=32, rank_stabilized=True).scale == 32 / math.sqrt(16)


def test_merged_equals_adapted():
    model = _model(tied=False)
    lora.add(model, lora.LoraConfig(rank=4, targets=lora.GROUPS), seed=0)
    _randomize(model)
    want = model.logits(IDS)
    fc = model.mtp.fc
    want_fc = np.asarray(fc.weight[...]) + 8 * np.asarray(fc.lora_a[...]) @ np.asarray(fc.lora_b[...])
    lora.merge(model)
    assert lora.count(model) == 0 and model.lora_config is None
    np.testing.assert_allclose(fc.weight[...], want_fc, atol=1e-6)
    # float32; the sum is formed in the weights instead of in the outputs.
    np.testing.assert_allclose(model.logits(IDS), want, atol=1e-4)
    assert np.abs(_model(tied=False).logits(IDS) - want).max() > 0.01
    lora.add(model, lora.LoraConfig(), seed=0)


def test_one_layer_of_a_stack_or_a_part_of_it_is_merged_alone():
    model = _model()
    lora.add(model, lora.LoraConfig(rank=4), seed=0)
    _randomize(model)
    layer = model.layers[0].mlp.up_proj
    want = np.asarray(lora.merged_weight(layer))
    # float32; the sums of a smaller product may be ordered otherwise.
    np.testing.assert_allclose(lora.merged_weight(layer, (1,)), want[1], atol=1e-6)
    np.testing.assert_allclose(lora.merged_weight(layer, (1, slice(0, 5))), want[1, :5], atol=1e-6)


def test_factors_lie_as_their_weights():
    model = _model()
    lora.add(model, lora.LoraConfig(targets=lora.GROUPS), seed=0)
    assert model.embed_tokens.lora_a.get_metadata("logical_axes") == ("vocab", "rank")
    down = model.layers[0].mlp.down_proj
    assert down.lora_a.get_metadata("logical_axes") == (None, "mlp", "rank")
    assert down.lora_b.get_metadata("logical_axes") == (None, "rank", "embed")


def test_shapes_without_arrays():
    def build():
        model = _model()
        lora.add(model, lora.LoraConfig(rank=8), seed=0)
        return model

    assert nnx.eval_shape(build).layers[1].self_attn.q_proj.lora_a.shape == (2, 64, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("attention", "[")}, "lora.targets has '.', which is no regular expression"),
        ({"exclude": ("*",)}, "lora.exclude has '.', which is no regular expression"),
        ({"targets": ()}, "lora.targets is empty"),
        ({"rank": 0}, "lora.rank=0 must be at least 1"),
        ({"alpha": 0}, "lora.alpha=0 must be positive"),
        ({"dropout": 1.0}, "lora.dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        lora.LoraConfig(**settings)


def test_refusals():
    model = _model()
    model.mtp = nnx.data(None)
    with pytest.raises(
        ValueError, match="'mtp', which matches no module of this model; it has the groups attention, deltanet, mlp, em"
    ):
        lora.add(model, lora.LoraConfig(targets=("mlp", "mtp")), seed=0)
    assert lora.count(model) == 0
    lora.add(model, lora.LoraConfig(targets=("embed",)), seed=0)
    with pytest.raises(ValueError, match="has adapters already"):
        lora.add(model, lora.LoraConfig(), seed=0)
    with pytest.raises(ValueError, match="the output head is tied to it"):
        lora.merge(model)
