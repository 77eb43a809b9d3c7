"""A small state of every kind of array, for tests of checkpoints."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from train.state import TrainState, init_state


def make_small_state(mesh) -> TrainState:
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    weight = nnx.Param(jax.device_put(jnp.arange(12.0).reshape(3, 4), sharding))
    half = nnx.Param(jax.device_put(jnp.arange(4.0, dtype=jnp.bfloat16), sharding))
    return init_state(nnx.State({"a": {0: {"weight": weight}}, "half": half}), optax.adam(1e-3), mesh)


def at(state: TrainState, step: int) -> TrainState:
    """Returns the state with every number moved by the step."""
    return jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), state._replace(step=jnp.int32(0)))
