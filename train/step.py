"""One training step as a single compiled function, and the placement of its batch.

Letters: A accumulation steps, B rows of a micro-batch, T tokens.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from qwen35_jax.sharding import spec
from train.health import HealthConfig, is_sound, next_health
from train.losses import Batch, Objective, Terms
from train.state import TrainState, to_float32

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, nnx.State, Batch], tuple[TrainState, Metrics]]


def make_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    dropout: bool,
    state: TrainState,
    health: HealthConfig,
) -> Step:
    """Compiles lazily ``step(state, frozen, batch) -> (state, metrics)``; the given state is consumed.

    The batch is that of ``put_batch``. Gradients of micro-batches are summed in float32; every term is
    divided by its count over all micro-batches. The dropout key is a function of the seed, the step
    and the index of the micro-batch. An unsound step changes its own number and ``state.health`` alone; the
    learning rate follows the updates that were applied.

    Args:
      state: fixes where the results are placed.
      health: which steps are unsound.
    """
    gradients = make_gradients(graphdef, objective, seed=seed, dropout=dropout)

    def step(state: TrainState, frozen: nnx.State, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, terms, counts = gradients(state.params, frozen, batch, state.step)
        metrics = {name: terms[name] / jnp.maximum(counts[name], 1.0) for name in terms}
        loss = sum(objective.weights[name] * metrics[name] for name in terms)
        grad_norm = optax.global_norm(grads)
        sound = is_sound(state.health, loss, grad_norm, health)
        updates, opt_state = tx.update(grads, state.opt_state, to_float32(state.params))
        old = state.params, state.opt_state
        new = optax.apply_updates(state.params, updates), opt_state
        params, opt_state = jax.tree.map(lambda n, o: jnp.where(sound, n, o), new, old)
        after = TrainState(state.step + 1, params, opt_state, next_health(state.health, sound, loss, grad_norm))
        metrics |= {
            "tokens": counts["loss"].astype(jnp.int32),
            "input_tokens": jnp.sum(batch["segment_ids"] > 0),
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.health.updates),
            "skipped": after.health.skips,
        }
        return after, metrics

    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, state.step.sharding))


def make_gradients(graphdef: nnx.GraphDef, objective: Objective, *, seed: int, dropout: bool) -> Callable:
    """Returns ``gradients(params, frozen, batch, step_index) -> (gradients, sums, counts)``.

    Gradients are those of the objective, in float32; sums and counts are per term, over the whole batch.
    """

    def gradients(params: nnx.State, frozen: nnx.State, batch: Batch, step_index: jax.Array):
        counts = jax.tree.map(lambda x: x.sum(0), jax.vmap(objective.counts)(batch))
        step_key = jax.random.fold_in(jax.random.key(seed), step_index)

        def loss(params: nnx.State, micro_batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Terms]:
            # copy=True: the layers are scanned inside, at another trace level.
            model = nnx.merge(graphdef, params, frozen, copy=True)
            sums = objective.sums(model, micro_batch, key)
            total = sum(objective.weights[name] * sums[name] / jnp.maximum(counts[name], 1.0) for name in sums)
            return total, sums

        def add_micro_batch(carry, xs):
            index, micro_batch = xs
            key = jax.random.fold_in(step_key, index) if dropout else None
            grads, sums = jax.grad(loss, has_aux=True)(params, micro_batch, key)
            return jax.tree.map(jnp.add, carry, (to_float32(grads), sums)), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        start = (zeros, {name: jnp.zeros((), jnp.float32) for name in counts})
        num_parts = batch["input_ids"].shape[0]
        (grads, sums), _ = jax.lax.scan(add_micro_batch, start, (jnp.arange(num_parts), batch))
        return grads, sums, counts

    return gradients


def rows_of_process(*, rows: int, tokens: int, accumulation: int, mesh: Mesh) -> range:
    """Returns the rows of a [rows, tokens] batch that this process must feed.

    Row ``r`` belongs to micro-batch ``r % accumulation``. On a mesh whose order of devices scatters the rows of a
    process, the range spans them all.
    """
    shape = (accumulation, rows // accumulation, tokens)
    parts = [index[1].indices(shape[1]) for index in _sharding(mesh).addressable_devices_indices_map(shape).values()]
    return range(min(part[0] for part in parts) * accumulation, max(part[1] for part in parts) * accumulation)


def put_batch(
    batch: Mapping[str, np.ndarray], *, accumulation: int, mesh: Mesh, num_rows: int | None = None, first_row: int = 0
) -> Batch:
    """Places host arrays [rows, T] as [A, B, T] on the mesh, row ``r`` of the batch in micro-batch ``r % A``.

    Args:
      num_rows: rows of the whole batch; by default those given.
      first_row: which of them the first one given is; a process gives those of ``rows_of_process``, or more.
    """
    sharding = _sharding(mesh)

    def put(x: np.ndarray) -> jax.Array:
        rows, tokens = x.shape[0] if num_rows is None else num_rows, x.shape[1]
        parts = x.reshape(-1, accumulation, tokens).swapaxes(0, 1)
        first = first_row // accumulation

        def read(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[1].indices(rows // accumulation)
            return parts[index[0], start - first : stop - first, index[2]]

        return jax.make_array_from_callback((accumulation, rows // accumulation, tokens), sharding, read)

    return {name: put(np.asarray(x)) for name, x in batch.items()}


def abstract_batch(*, rows: int, tokens: int, accumulation: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes that ``put_batch`` makes of [rows, tokens] arrays, to compile a step before any data."""
    sharding = _sharding(mesh)
    dtypes = {"input_ids": jnp.int32, "segment_ids": jnp.int32, "trained": jnp.bool_}
    shape = (accumulation, rows // accumulation, tokens)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in dtypes.items()}


def _sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, spec((None, "batch", "length")))
