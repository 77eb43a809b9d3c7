"""An objective may compare what it trains with a second, frozen model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from qwen35_jax.model import Qwen35
from qwen35_jax.sharding import make_mesh, named_sharding
from tests.train.conftest import small_config
from train.batch import TOKEN_FIELDS, abstract_batch, put_batch
from train.config import HealthConfig, OptimConfig
from train.objectives.terms import Objective, count_targets
from train.optim import make_optimizer, make_schedule
from train.state import Frozen, init_state, split_model
from train.step import make_gradients, make_step

OPTIM = OptimConfig(learning_rate=1e-2, schedule="constant")


def pull():
    """Minimises the mean square distance of the hidden states of the two models, at trained tokens."""

    def sums(model, batch, dropout_key, reference=None):
        inputs = (batch["input_ids"], batch["segment_ids"])
        distance = model.hidden_states(*inputs) - reference.hidden_states(*inputs)
        return {"divergence": jnp.sum(jnp.mean(jnp.square(distance), axis=-1) * batch["trained"])}

    return Objective({"divergence": 1.0}, lambda batch: {"divergence": count_targets(batch, 0)}, sums)


def placed(seed, mesh):
    """Returns a random model whose arrays lie on the mesh."""
    graphdef, state = nnx.split(Qwen35(small_config(), dtype=jnp.float32, rngs=nnx.Rngs(seed)))
    state = jax.tree.map(
        lambda variable: variable.replace(jax.device_put(variable[...], named_sharding(variable, mesh))),
        state,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
    return nnx.merge(graphdef, state)


@pytest.mark.parametrize("axes", [{}, {"fsdp": 2, "tensor": 2}], ids=["one device", "four devices"])
def test_a_student_is_pulled_to_a_frozen_reference(axes, host_batch):
    mesh = make_mesh(**axes)
    with jax.set_mesh(mesh):
        reference = placed(1, mesh)
        before = jax.device_get(nnx.state(reference))
        graphdef, params, rest = split_model(placed(0, mesh), adapters=False, train_mtp=False)
        names = [path for path, _ in nnx.to_flat_state(params)]
        tx, schedule = make_optimizer(OPTIM, 10), make_schedule(OPTIM, 10)
        state, frozen = init_state(params, tx, mesh), Frozen.of(rest, reference)
        step = make_step(graphdef, pull(), tx, schedule, seed=0, dropout=False, state=state, health=HealthConfig())
        shapes = abstract_batch(sequences=8, tokens=24, accumulation=2, mesh=mesh, fields=TOKEN_FIELDS)
        compiled = step.lower(state, frozen, shapes).compile()
        batch, reports = put_batch(host_batch, accumulation=2, mesh=mesh), []
        for _ in range(5):
            state, metrics = compiled(state, frozen, batch)
            reports.append(jax.device_get(metrics))
    assert reports[-1]["divergence"] < 0.8 * reports[0]["divergence"]
    assert reports[0]["tokens"] == host_batch["trained"].sum()
    # What is saved is the student's: a parameter, and two moments for each.
    assert [path for path, _ in nnx.to_flat_state(state.params)] == names
    sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(sizes) == 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
    for was, is_now in zip(jax.tree.leaves(before), jax.tree.leaves(nnx.state(reference)), strict=True):
        np.testing.assert_array_equal(was, is_now)


def test_no_gradient_reaches_the_reference(mesh, model, host_batch):
    graphdef, params, rest = split_model(model, adapters=False, train_mtp=False)
    gradients = make_gradients(graphdef, pull(), seed=0, dropout=False)
    batch = put_batch(host_batch, accumulation=1, mesh=mesh)

    @jax.jit
    def grads_of(params, rest, reference):
        return gradients(params, Frozen(rest, reference), batch, jnp.int32(0))[0]

    with jax.set_mesh(mesh):
        same = grads_of(params, rest, nnx.split(model))
        other = grads_of(params, rest, nnx.split(placed(1, mesh)))
    # A student that equals its reference is where it should be, but for what is rounded: the program computes the same
    # logits twice and may fuse them in two ways. The reference's own weights are no variables.
    assert optax.global_norm(same) < 1e-5 * optax.global_norm(other)
    moved = {path[0] for path, leaf in nnx.to_flat_state(other) if np.any(leaf[...])}
    assert moved == {"embed_tokens", "layers", "norm"}
    assert jax.tree.structure(other) == jax.tree.structure(params)
