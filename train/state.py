"""The state of a run: which parameters train, their optimizer, and where all of it lives on the mesh."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from qwen35_jax.model import Qwen35
from train.objectives.terms import in_mtp_block
from train.observe.health import Health, new_health


class TrainState(NamedTuple):
    """What a step changes and a checkpoint holds.

    There is no random state: dropout keys are a function of the run's seed, the step and the micro-batch.
    """

    step: Int[Array, ""]
    """Steps done so far, those included whose update was skipped."""
    params: nnx.State
    opt_state: optax.OptState
    health: Health


class Frozen(NamedTuple):
    """What a step reads and never changes. The optimizer and the checkpoints do not see it."""

    rest: nnx.State
    """What the model holds besides the parameters that train."""
    reference: tuple[nnx.GraphDef, nnx.State] | None = None
    """A second model, split, for objectives that compare with one."""

    @classmethod
    def of(cls, rest: nnx.State, reference: Qwen35 | None) -> "Frozen":
        """Splits the reference model, if there is one."""
        return cls(rest, None if reference is None else nnx.split(reference))


def split_model(model: Qwen35, *, adapters: bool, train_mtp: bool) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a model into its definition, the parameters that train and the rest.

    Args:
      adapters: train the LoRA parameters and nothing else.
      train_mtp: whether a full fine-tune includes the MTP block.

    Raises:
      ValueError: nothing would train.
    """

    def trains(path, value) -> bool:
        if isinstance(value, nnx.LoRAParam):
            return adapters
        return not adapters and isinstance(value, nnx.Param) and (train_mtp or not in_mtp_block(path, value))

    graphdef, params, frozen = nnx.split(model, trains, ...)
    if not jax.tree.leaves(params):
        raise ValueError("no parameter would train: the model has no adapters; add some with qwen35_jax.lora.add.")
    return graphdef, params, frozen


def init_state(params: nnx.State, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Makes the state of step 0.

    Moments have the dtype that ``tx`` gives them and lie where their parameters lie.
    """
    places = jax.tree.map(lambda x: x.sharding, abstract_state(params, tx, mesh))
    opt_state = jax.jit(lambda p: tx.init(to_float32(p)), out_shardings=places.opt_state)(params)
    step, health = jax.device_put((np.int32(0), new_health()), (places.step, places.health))
    return TrainState(step, params, opt_state, health)


def abstract_state(params: nnx.State, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns shapes, dtypes and placement of the state that ``init_state`` makes; ``params`` may be shapes too."""
    replicated = NamedSharding(mesh, PartitionSpec())
    opt_state = optax.tree_map_params(
        tx.init,
        lambda x, param: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=param.sharding),
        jax.eval_shape(lambda p: tx.init(to_float32(p)), params),
        params,
        transform_non_params=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
    )
    step, health = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), (np.int32(0), new_health())
    )
    return abstract(TrainState(step, params, opt_state, health))


def to_float32(tree: PyTree[Array]) -> PyTree[Array]:
    """Casts every array to float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def count_parameters(tree: PyTree[Array]) -> int:
    """Counts the numbers in all arrays."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def abstract(state: TrainState) -> TrainState:
    """Returns shapes, dtypes and placement of a state without its arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
