"""The step: gradients do not depend on the split, empty batches are harmless, dropout repeats exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.batch import abstract_batch, put_batch
from train.config import HealthConfig, MtpLossConfig, OptimConfig, Supervised
from train.optim import make_optimizer, make_schedule
from train.state import Frozen, init_state, split_model
from train.step import make_gradients, make_step

OBJECTIVE = Supervised(MtpLossConfig(weight=0.3, num_steps=2)).make(loss_chunk=8, remat="block")
TERMS = tuple(OBJECTIVE.weights)


@pytest.fixture(scope="session")
def split(model):
    graphdef, params, rest = split_model(model, adapters=False, train_mtp=True)
    return graphdef, params, Frozen(rest)


@pytest.fixture(scope="session")
def gradients(split, mesh, host_batch):
    """Returns the gradient of one term for the batch cut into so many micro-batches."""
    graphdef, params, frozen = split

    @jax.jit
    def compiled(params, frozen, batch, weights):
        objective = OBJECTIVE._replace(weights=dict(zip(TERMS, weights, strict=True)))
        return make_gradients(graphdef, objective, seed=0, dropout=False)(params, frozen, batch, jnp.int32(0))[0]

    def gradients(accumulation, term):
        weights = tuple(jnp.float32(name == term) for name in TERMS)
        batch = put_batch(host_batch, accumulation=accumulation, mesh=mesh)
        with jax.set_mesh(mesh):
            return jax.device_get(compiled(params, frozen, batch, weights))

    return gradients


@pytest.mark.parametrize("term", TERMS)
def test_gradient_of_every_term_is_invariant_to_the_split(gradients, term):
    whole, split = (jax.tree.leaves(gradients(accumulation, term)) for accumulation in (1, 4))
    total = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in whole))
    assert total > 0
    for a, b in zip(whole, split, strict=True):
        # Relative for each parameter; those without a gradient in this term have 0 on both sides.
        assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(a), 1e-3 * total)


@pytest.fixture(scope="session")
def compiled_step(split, mesh):
    """A compiled step of two micro-batches with a maker of fresh states, for a full fine-tune."""
    graphdef, params, frozen = split
    optim = OptimConfig(learning_rate=3e-3, schedule="constant")
    tx = make_optimizer(optim, 10)

    def fresh():
        return init_state(jax.tree.map(jnp.copy, params), tx, mesh)

    with jax.set_mesh(mesh):
        state = fresh()
        schedule, health = make_schedule(optim, 10), HealthConfig(loss_factor=3.0)
        step = make_step(graphdef, OBJECTIVE, tx, schedule, seed=0, dropout=False, state=state, health=health)
        batch = abstract_batch(sequences=8, tokens=24, accumulation=2, mesh=mesh)
        compiled = step.lower(state, frozen, batch).compile()
    return lambda state, batch: compiled(state, frozen, batch), fresh


def test_steps_learn_and_report(compiled_step, mesh, host_batch):
    step, fresh = compiled_step
    state, batch = fresh(), put_batch(host_batch, accumulation=2, mesh=mesh)
    reports = []
    for _ in range(6):
        state, metrics = step(state, batch)
        reports.append(jax.device_get(metrics))
    assert int(state.step) == 6
    for name in TERMS:
        assert reports[-1][name] < reports[0][name]
    assert reports[0]["input_tokens"] == np.sum(host_batch["segment_ids"] > 0)
    assert reports[0]["tokens"] == OBJECTIVE.counts(jax.tree.map(jnp.asarray, host_batch))["loss"]
    assert reports[0]["learning_rate"] == np.float32(3e-3)


def test_a_batch_without_targets_gives_zero_and_no_nan(compiled_step, mesh, host_batch):
    step, fresh = compiled_step
    empty = host_batch | {"trained": np.zeros_like(host_batch["trained"])}
    before = jax.device_get(fresh().params)
    state, metrics = step(fresh(), put_batch(empty, accumulation=2, mesh=mesh))
    assert all(metrics[name] == 0 for name in (*TERMS, "tokens", "grad_norm"))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(state.params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unsound_step_leaves_all_but_its_number_and_the_count_of_skips(compiled_step, mesh, host_batch):
    step, fresh = compiled_step
    before = fresh()
    # As if the last updates had had a loss of 0.1.
    before = before._replace(health=before.health._replace(updates=jnp.int32(40), loss=jnp.float32(0.1)))
    want = jax.device_get(before)
    after, metrics = step(before, put_batch(host_batch, accumulation=2, mesh=mesh))
    assert metrics["skipped"] == 1 and metrics["loss"] > 0.3
    assert int(after.step) == 1 and int(after.health.updates) == 40 and int(after.health.skips) == 1
    assert after.health.loss == want.health.loss
    pairs = zip(
        jax.tree.leaves((want.params, want.opt_state)), jax.tree.leaves((after.params, after.opt_state)), strict=True
    )
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
