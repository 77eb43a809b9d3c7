"""One training step as a single compiled function."""

import operator
from collections.abc import Callable, Iterable
from functools import reduce

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.stages import Wrapped
from jaxtyping import Array, Float, PyTree

from train.batch import Batch
from train.config.health import HealthConfig
from train.objectives.terms import Objective, Terms, check_terms
from train.observe.health import is_sound, next_health
from train.rounding import apply_updates
from train.state import Frozen, TrainState, to_float32

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]


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
    masks: PyTree | None = None,
) -> Wrapped:
    """Returns ``step(state, frozen, batch) -> (state, metrics)``, which consumes the given state.

    It is compiled at its first call. The batch is that of ``put_batch``. Gradients of micro-batches are summed in
    float32, and every term is divided by its count over all micro-batches. The dropout key is a function of the seed,
    the step and the index of the micro-batch. A step that is unsound changes its own number and ``state.health``
    alone; the learning rate follows the updates that were applied.

    Args:
      state: fixes where the results are placed.
      health: which steps are unsound.
      masks: marks the part of each parameter that trains (``train.state.stack_masks``); None for all of it.
    """
    gradients = make_gradients(graphdef, objective, seed=seed, dropout=dropout)
    main_term = next(iter(objective.weights), None)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, terms, counts = gradients(state.params, frozen, batch, state.step)
        grads = _masked(grads, masks)
        metrics = {name: terms[name] / jnp.maximum(counts[name], 1.0) for name in terms}
        loss = _add_up(objective.weights[name] * metrics[name] for name in terms)
        grad_norm = optax.tree.norm(grads)
        sound = is_sound(state.health, loss, grad_norm, health)
        updates, opt_state = tx.update(grads, state.opt_state, to_float32(state.params))
        old = state.params, state.opt_state
        # Weight decay shrinks what has no gradient too.
        new = apply_updates(state.params, _masked(updates, masks), seed=seed, step=state.step), opt_state
        params, opt_state = jax.tree.map(lambda n, o: jnp.where(sound, n, o), new, old)
        after = TrainState(state.step + 1, params, opt_state, next_health(state.health, sound, loss, grad_norm))
        metrics |= {
            "tokens": counts[main_term].astype(jnp.int32),
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

    Gradients are those of the objective for ``params``, in float32. Sums and counts are per term, over the whole batch.
    """

    def gradients(params: nnx.State, frozen: Frozen, batch: Batch, step_index: jax.Array):
        counts = _counts(objective, batch)
        step_key = jax.random.fold_in(jax.random.key(seed), step_index)

        def loss(params: nnx.State, micro_batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Terms]:
            sums = _sums(graphdef, objective, params, frozen, micro_batch, key)
            check_terms(objective, sums, counts)
            weighted = {name: objective.weights[name] * sums[name] for name in sums}
            return _add_up(weighted[name] / jnp.maximum(counts[name], 1.0) for name in sums), sums

        def add_micro_batch(carry, xs):
            index, micro_batch = xs
            key = jax.random.fold_in(step_key, index) if dropout else None
            grads, sums = jax.grad(loss, has_aux=True)(params, micro_batch, key)
            return jax.tree.map(jnp.add, carry, (to_float32(grads), sums)), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        start = (zeros, _zero_sums(counts))
        num_micro_batches = jax.tree.leaves(batch)[0].shape[0]
        (grads, sums), _ = jax.lax.scan(add_micro_batch, start, (jnp.arange(num_micro_batches), batch))
        return grads, sums, counts

    return gradients


def make_sums(graphdef: nnx.GraphDef, objective: Objective, *, state: TrainState) -> Wrapped:
    """Returns ``sums(params, frozen, batch) -> (sums, counts)`` of every term over a batch, as a step computes them.

    There is no dropout, no gradient and no change. It is compiled at its first call.

    Args:
      state: fixes where the results are placed.
    """

    def sums(params: nnx.State, frozen: Frozen, batch: Batch) -> tuple[Terms, Terms]:
        counts = _counts(objective, batch)

        def add_micro_batch(carry: Terms, micro_batch: Batch):
            return jax.tree.map(jnp.add, carry, _sums(graphdef, objective, params, frozen, micro_batch, None)), None

        return jax.lax.scan(add_micro_batch, _zero_sums(counts), batch)[0], counts

    return jax.jit(sums, out_shardings=state.step.sharding)


def _sums(
    graphdef: nnx.GraphDef,
    objective: Objective,
    params: nnx.State,
    frozen: Frozen,
    micro_batch: Batch,
    key: jax.Array | None,
) -> Terms:
    # copy=True: the layers are scanned inside, at another trace level.
    model = nnx.merge(graphdef, params, frozen.rest, copy=True)
    return objective.sums(model, micro_batch, key, frozen.teacher_head)


def _counts(objective: Objective, batch: Batch) -> Terms:
    """Counts the targets of every term over all micro-batches."""
    return jax.tree.map(lambda x: x.sum(0), jax.vmap(objective.counts)(batch))


def _zero_sums(counts: Terms) -> Terms:
    return {name: jnp.zeros((), jnp.float32) for name in counts}


def _masked(tree: PyTree[Array], masks: PyTree | None) -> PyTree[Array]:
    return tree if masks is None else jax.tree.map(lambda x, mask: jnp.where(mask, x, 0), tree, masks)


def _add_up(values: Iterable[Float[Array, ""]]) -> Float[Array, ""]:
    return reduce(operator.add, values)
