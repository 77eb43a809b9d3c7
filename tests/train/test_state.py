"""What trains under which settings, and where the optimizer's moments live."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from qwen35_jax.model import Qwen35
from tests.train.conftest import small_config
from train.config import OptimConfig
from train.optim import make_optimizer
from train.state import TrainState, abstract, count_parameters, init_state, split_model, stack_masks


def top_names(state):
    return {path[0] for path, _ in nnx.to_flat_state(state)}


def test_a_full_fine_tune_trains_everything(model):
    _, params, frozen = split_model(model, adapters=False, train_mtp=True)
    assert top_names(params) == {"embed_tokens", "layers", "norm", "mtp"}
    assert not jax.tree.leaves(frozen)


def test_the_mtp_block_stays_as_it_is_without_its_loss(model):
    _, params, frozen = split_model(model, adapters=False, train_mtp=False)
    assert top_names(params) == {"embed_tokens", "layers", "norm"}
    assert top_names(frozen) == {"mtp"}


def test_named_weights_train_alone(model):
    _, params, frozen = split_model(model, adapters=False, train_mtp=True, train=("mtp",))
    assert top_names(params) == {"mtp"} and "mtp" not in top_names(frozen)
    _, params, _ = split_model(model, adapters=False, train_mtp=True, train=(r"model.*norm\.weight", "embed_tokens"))
    names = {path[-2] for path, _ in nnx.to_flat_state(params)}
    assert names == {"embed_tokens", "norm", "q_norm", "k_norm", "input_layernorm", "post_attention_layernorm"}
    with pytest.raises(ValueError, match=r"train has 'mtp\.norms', which matches no module"):
        split_model(model, adapters=False, train_mtp=True, train=("mtp.norms",))
    with pytest.raises(ValueError, match=r"mtp\.weight=0 takes away all that train chooses"):
        split_model(model, adapters=False, train_mtp=False, train=("mtp",))


def test_the_tower_trains_where_it_is_named():
    model = nnx.eval_shape(lambda: Qwen35(small_config(), dtype=jnp.float32, rngs=nnx.Rngs(0)))

    def trained(*words):
        _, params, _ = split_model(model, adapters=False, train_mtp=True, train=words)
        return {path[: 2 if path[0] == "vision" else 1] for path, _ in nnx.to_flat_state(params)}

    text, merger = {("embed_tokens",), ("layers",), ("norm",), ("mtp",)}, {("vision", "merger")}
    tower = {("vision", part) for part in ("patch_embed", "pos_embed", "blocks")}
    assert trained("all") == trained(".*") == text
    assert trained("tower") == tower and trained("merger") == merger
    assert trained("all", "tower", "merger") == text | tower | merger
    words = ("visual.blocks.1.mlp.linear_fc1",)
    _, params, _ = split_model(model, adapters=False, train_mtp=True, train=words)
    ((path, mask),) = nnx.to_flat_state(stack_masks(model, params, words, train_mtp=True))
    assert path == ("vision", "blocks", "mlp", "linear_fc1", "weight") and np.ravel(mask[...]).tolist() == [False, True]


def test_masks_mark_the_layers_of_a_stack_that_train(model):
    words = ("layers.2.mlp.up_proj", "mtp.fc")
    _, params, _ = split_model(model, adapters=False, train_mtp=True, train=words)
    masks = dict(nnx.to_flat_state(stack_masks(model, params, words, train_mtp=True)))
    # Layers 0 and 2 are one stack.
    assert {path: np.ravel(mask[...]).tolist() for path, mask in masks.items()} == {
        ("layers", 0, "mlp", "up_proj", "weight"): [False, True],
        ("mtp", "fc", "weight"): [True],
    }
    whole = count_parameters(params)
    assert count_parameters(params, nnx.from_flat_state(list(masks.items()))) == whole - 32 * 48
    assert stack_masks(model, params, ("mlp",), train_mtp=True) is not None
    _, params, _ = split_model(model, adapters=False, train_mtp=True, train=("mlp",))
    assert stack_masks(model, params, ("mlp",), train_mtp=True) is None


def test_without_adapters_there_is_nothing_to_train(model):
    with pytest.raises(ValueError, match="no parameter would train"):
        split_model(model, adapters=True, train_mtp=True)


def test_moments_are_float32_and_lie_where_their_parameters_lie(mesh):
    spec = jax.sharding.PartitionSpec("fsdp", "tensor")
    sharding = jax.sharding.NamedSharding(mesh, spec)
    weight = nnx.Param(jax.device_put(jnp.ones((4, 6), jnp.bfloat16), sharding))
    state = init_state(nnx.State({"weight": weight}), optax.adam(1e-3), mesh)
    mu = state.opt_state[0].mu["weight"]
    assert mu.dtype == jnp.float32 and mu[...].sharding == sharding
    assert int(state.step) == 0 and int(state.health.updates) == 0
    assert count_parameters(state.params) == 24
    shapes = abstract(state)
    assert isinstance(shapes, TrainState)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(shapes))


def test_the_first_moment_may_be_bfloat16_and_the_second_stays_float32(mesh):
    weight = nnx.Param(jax.device_put(jnp.ones((4, 6)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())))
    tx = make_optimizer(OptimConfig(1e-4, first_moment_dtype="bfloat16"), 10)
    state = init_state(nnx.State({"weight": weight}), tx, mesh)
    assert sorted(str(x.dtype) for x in jax.tree.leaves(state.opt_state) if x.ndim) == ["bfloat16", "float32"]
