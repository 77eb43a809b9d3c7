"""The state of a run: which parameters train, their optimizer, and where all of it lives on the mesh."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from qwen35_jax.lora import Place, checkpoint_name, is_stacked, tree_path
from qwen35_jax.model import Qwen35
from qwen35_jax.targets import Module, choose
from train.config.recipe import EVERYTHING
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
    teacher_head: Float[Array, "V E"] | None = None
    """The weight of a teacher's output head, for objectives that read its hidden states."""


def split_model(
    model: Qwen35, *, adapters: bool, train_mtp: bool, train: Sequence[str] = (EVERYTHING,)
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a model into its definition, the parameters that train and the rest.

    Args:
      adapters: train the LoRA parameters and nothing else.
      train_mtp: whether a full fine-tune includes the MTP block.
      train: which weights train in a full fine-tune. A parameter is among them if any layer of its stack is.

    Raises:
      ValueError: nothing would train.
    """
    chosen = None if adapters else {path for path, _ in choose_weights(model, train, train_mtp=train_mtp)}

    def trains(path, value) -> bool:
        if isinstance(value, nnx.LoRAParam):
            return adapters
        return chosen is not None and tree_path(path) in chosen

    graphdef, params, frozen = nnx.split(model, trains, ...)
    if not jax.tree.leaves(params):
        raise ValueError("no parameter would train: the model has no adapters; add some with qwen35_jax.lora.add.")
    return graphdef, params, frozen


def choose_weights(model: Qwen35, train: Sequence[str], *, train_mtp: bool) -> dict[Place, Module]:
    """Returns the weights that ``train`` names, by path and position in the stack, of a model of arrays or of shapes.

    Raises:
      ValueError: a word of it matches nothing.
    """
    weights = dict(_all_weights(model))
    exclude = () if train_mtp else ("mtp",)
    words = [".*" if word == EVERYTHING else word for word in train]
    chosen = choose(weights, words, exclude, option="train", excluding="mtp.weight=0")
    return {place: weight for place, weight in weights.items() if place in chosen}


def stack_masks(model: Qwen35, params: nnx.State, train: Sequence[str], *, train_mtp: bool) -> PyTree | None:
    """Marks the layers of each parameter's stack that train, in arrays of a shape that broadcasts.

    Returns:
      A tree like ``params``; None if all layers of all of them train.
    """
    chosen = choose_weights(model, train, train_mtp=train_mtp)

    def mask(path: tuple, param: nnx.Variable) -> nnx.Variable:
        stack = param.shape[:1] if is_stacked(tree_path(path)) else ()
        marks = np.array([(tree_path(path), index) in chosen for index in np.ndindex(*stack)])
        return param.replace(marks.reshape(*stack, *(1,) * (len(param.shape) - len(stack))))

    masks = nnx.from_flat_state([(path, mask(path, param)) for path, param in nnx.to_flat_state(params)])
    return None if all(mark.all() for mark in jax.tree.leaves(masks)) else masks


def _all_weights(model: Qwen35) -> Iterator[tuple[Place, Module]]:
    for path, param in nnx.to_flat_state(nnx.state(model, _is_weight)):
        path = tree_path(path)
        for index in np.ndindex(*(param.shape[:1] if is_stacked(path) else ())):
            name = checkpoint_name(path, index, period=len(model.layers))
            yield (path, index), Module(name.removesuffix(".weight"))


def _is_weight(path: tuple, value: object) -> bool:
    del path
    return isinstance(value, nnx.Param) and not isinstance(value, nnx.LoRAParam)


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


def count_parameters(tree: PyTree, masks: PyTree | None = None) -> int:
    """Counts the numbers in all arrays, where there are masks only those that they mark."""
    sizes = jax.tree.map(lambda x: int(np.prod(x.shape)), tree)
    if masks is not None:
        sizes = jax.tree.map(lambda size, mask: round(size * mask.mean()), sizes, masks)
    return sum(jax.tree.leaves(sizes))


def abstract(state: TrainState) -> TrainState:
    """Returns shapes, dtypes and placement of a state without its arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
