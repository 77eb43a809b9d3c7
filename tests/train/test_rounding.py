"""Stochastic rounding: unbiased, the same everywhere, and small updates add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from qwen35_jax.model import Qwen35
from qwen35_jax.sharding import make_mesh
from tests.train.conftest import small_config
from train.batch import put_batch
from train.config import HealthConfig, MtpLossConfig, OptimConfig, Supervised
from train.optim import make_optimizer, make_schedule
from train.rounding import apply_updates, round_randomly
from train.state import Frozen, init_state, split_model
from train.step import make_step

NUMBERS = np.float32([1.0, 1.001, -1.001, 0.02007, -3e-5, 1e30, 1e-37, 0.0])


def test_the_mean_is_the_number_and_only_its_neighbours_occur():
    draws = 1 << 16
    # Every value of the bits once: the mean is then exact but for the sum in float64.
    bits = np.arange(draws, dtype=np.uint16)
    for number in NUMBERS:
        rounded = np.asarray(round_randomly(jnp.full(draws, number), jnp.asarray(bits)).astype(jnp.float32))
        neighbours = np.unique(rounded)
        assert len(neighbours) == (1 if np.float32(jnp.bfloat16(number)) == number else 2)
        assert neighbours[0] <= number <= neighbours[-1]
        np.testing.assert_allclose(rounded.mean(dtype=np.float64), number, rtol=1e-7)


def test_what_is_not_finite_stays_as_it_is():
    bits = jnp.full(3, 0xFFFF, jnp.uint16)
    got = round_randomly(jnp.float32([np.inf, -np.inf, np.nan]), bits)
    np.testing.assert_array_equal(got.astype(jnp.float32), np.float32([np.inf, -np.inf, np.nan]))


def test_float32_parameters_are_added_to_plainly():
    params, updates = {"a": jnp.float32([1.0, 2.0])}, {"a": jnp.float32([1e-7, 3.0])}
    got = apply_updates(params, updates, seed=0, step=jnp.int32(0))
    np.testing.assert_array_equal(got["a"], np.float32([1.0, 2.0]) + np.float32([1e-7, 3.0]))
    assert got["a"].dtype == jnp.float32


def test_bits_depend_on_seed_step_and_name_and_not_on_the_mesh():
    params = {name: jnp.ones((64, 64), jnp.bfloat16) for name in ("a", "b")}
    updates = jax.tree.map(lambda x: jnp.full(x.shape, 1e-3), params)

    def rounded(seed, step, **axes):
        place = NamedSharding(make_mesh(**axes), PartitionSpec("fsdp", "tensor"))
        placed = jax.device_put((params, updates), place)
        out = jax.jit(lambda p, u, s: apply_updates(p, u, seed=seed, step=s))(*placed, jnp.int32(step))
        return jax.device_get(out)

    one = rounded(0, 0)
    for again in (rounded(0, 0), rounded(0, 0, fsdp=4, tensor=2)):
        np.testing.assert_array_equal(again["a"], one["a"])
        np.testing.assert_array_equal(again["b"], one["b"])
    for other in (one["b"], rounded(0, 1)["a"], rounded(1, 0)["a"]):
        assert (other != one["a"]).any()


def test_updates_that_rounding_to_the_nearest_loses_add_up():
    rng = np.random.default_rng(0)
    start = jnp.asarray(0.02 * rng.standard_normal(20_000), jnp.bfloat16)
    grads = {"w": jnp.asarray(rng.standard_normal(20_000), jnp.float32)}
    tx = make_optimizer(OptimConfig(learning_rate=1e-5, schedule="constant", clip_norm=None), 20)
    large = np.abs(np.asarray(start, np.float32)) > 0.01

    def train(add):
        params, opt_state = {"w": start}, tx.init({"w": start.astype(jnp.float32)})
        for step in range(20):
            updates, opt_state = tx.update(grads, opt_state, {"w": params["w"].astype(jnp.float32)})
            params = add(params, updates, step)
        return np.asarray(params["w"], np.float32) - np.asarray(start, np.float32)

    nearest = train(lambda p, u, step: {"w": (p["w"] + u["w"]).astype(jnp.bfloat16)})
    ours = train(lambda p, u, step: apply_updates(p, u, seed=0, step=jnp.int32(step)))
    # A constant gradient moves every weight by 20 x 1e-5 against its sign.
    moved = -np.sign(np.asarray(grads["w"])) * 20e-5
    assert np.mean(nearest[large] != 0) < 0.001
    assert np.mean(ours[large] != 0) > 0.7
    # One weight moves by multiples of its last digit, about 1e-4; the mean of 6,000 of them is known to 1e-6.
    np.testing.assert_allclose(np.mean(ours[large] * np.sign(moved[large])), 20e-5, atol=5e-6)


@pytest.mark.slow
def test_bfloat16_parameters_learn_as_float32_ones(mesh, host_batch):
    """The loss falls as with float32 parameters at a rate at which rounding to the nearest would stand still."""
    batch = put_batch(host_batch, accumulation=1, mesh=mesh)
    objective = Supervised(MtpLossConfig(weight=0.0)).make(loss_chunk=24, remat="none")
    optim = OptimConfig(learning_rate=3e-5, schedule="constant")
    losses, changed = {}, {}
    for dtype in ("float32", "bfloat16"):
        with jax.set_mesh(mesh):
            model = Qwen35(small_config(), dtype=jnp.float32, param_dtype=dtype, vision=False, rngs=nnx.Rngs(0))
            graphdef, params, rest = split_model(model, adapters=False, train_mtp=False)
            before = jax.device_get(params)
            tx = make_optimizer(optim, 200)
            state = init_state(params, tx, mesh)
            step = make_step(graphdef, objective, tx, make_schedule(optim, 200), seed=0, dropout=False, state=state,
                             health=HealthConfig())  # fmt: skip
            for _ in range(200):
                state, metrics = step(state, Frozen(rest), batch)
        losses[dtype] = float(metrics["loss"])
        pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(state.params)), strict=True))
        large = [np.abs(np.asarray(a, np.float32)) > 0.01 for a, _ in pairs]
        changed[dtype] = np.mean(np.concatenate([(a != b)[where] for (a, b), where in zip(pairs, large, strict=True)]))
    print(losses, changed)
    assert changed["bfloat16"] > 0.9
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.01)
