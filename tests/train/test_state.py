"""What trains under which settings, and where the optimizer's moments live."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from train.config import OptimConfig
from train.optim import make_optimizer
from train.state import TrainState, abstract, count_parameters, init_state, split_model


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
    tx = make_optimizer(OptimConfig(first_moment_dtype="bfloat16"), 10)
    state = init_state(nnx.State({"weight": weight}), tx, mesh)
    assert sorted(str(x.dtype) for x in jax.tree.leaves(state.opt_state) if x.ndim) == ["bfloat16", "float32"]
