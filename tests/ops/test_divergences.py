"""The divergences from a live teacher, against float64 formulas in numpy over the whole vocabulary."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.linear_cross_entropy import FrozenHead, linear_divergence, linear_top_k_divergence
from qwen35_jax.ops.linear_cross_entropy.divergences import check_options
from qwen35_jax.sharding import make_mesh
from tests.ops.divergences import (
    D,
    E,
    V,
    assert_close,
    exact,
    kl,
    log_distributions,
    make_inputs,
    relative_error,
    value_and_gradients,
)

CASES = {
    "forward": {"kind": "forward_kl"},
    "reverse": {"kind": "reverse_kl"},
    "jsd": {"kind": "jsd", "beta": 0.3},
    "total_variation": {"kind": "total_variation"},
    "forward_warm": {"kind": "forward_kl", "temperature": 2.5},
    "reverse_cool": {"kind": "reverse_kl", "temperature": 0.7},
    "jsd_warm": {"kind": "jsd", "beta": 0.8, "temperature": 2.0},
    "total_variation_warm": {"kind": "total_variation", "temperature": 1.5},
}
# float32 against float64: errors of some 1e-7 for each probability. Gradients are compared by their norms.
TOLERANCE = 1e-5


def run(settings, inputs, *, chunk_tokens, **options):
    hidden, head, frozen, targets, weights, groups = inputs
    loss = partial(linear_divergence, **settings, chunk_tokens=chunk_tokens, groups=jnp.asarray(groups), **options)
    return value_and_gradients(loss, hidden, head, frozen, targets, weights)


def want(settings, inputs):
    hidden, head, frozen, _, weights, _ = inputs
    return exact(hidden, head, frozen, weights, **settings)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_are_those_of_the_formula(name):
    inputs = make_inputs(13)
    assert_close(run(CASES[name], inputs, chunk_tokens=5), want(CASES[name], inputs), TOLERANCE)


@pytest.mark.parametrize(
    ("name", "T", "chunk_tokens"),
    [("forward", 1, 1), ("reverse", 7, 1000), ("jsd", 65, 16), ("total_variation", 65, 7)],
)
def test_chunks_of_other_sizes(name, T, chunk_tokens):
    inputs = make_inputs(T)
    assert_close(run(CASES[name], inputs, chunk_tokens=chunk_tokens), want(CASES[name], inputs), TOLERANCE)


def exact_extras(settings, inputs, k):
    hidden, head, frozen, targets, weights, groups = inputs
    log_s, log_t = log_distributions(hidden, head, frozen)
    s, t = np.exp(log_s), np.exp(log_t)
    at = lambda values, ids: np.take_along_axis(values, ids, axis=-1)  # noqa: E731
    top_s, top_t = (np.argsort(-x, axis=-1)[..., :k] for x in (s, t))
    trained = want(settings, inputs)[2]
    measures = {
        "kl_forward": kl(log_t, log_s),
        "kl_reverse": kl(log_s, log_t),
        "student_entropy": -np.sum(s * log_s, -1),
        "teacher_entropy": -np.sum(t * log_t, -1),
        "student_loss": -at(log_s, targets[..., None])[..., 0],
        "teacher_loss": -at(log_t, targets[..., None])[..., 0],
        "agreement": s.argmax(-1) == t.argmax(-1),
        "overlap_tv": np.minimum(s, t).sum(-1),
        "top_k_overlap": (top_t[..., None] == top_s[..., None, :]).any(-1).mean(-1),
        "teacher_top_k_mass": at(t, top_t).sum(-1),
        "student_top_k_mass": at(s, top_t).sum(-1),
    }
    for name, values in (("kl", trained), *((name, measures[name]) for name in ("kl_forward", "kl_reverse"))):
        measures |= {f"{name}_group_{group}": values * (groups == group) for group in range(4)}
    return {name: np.sum(weights * values) for name, values in measures.items()}


@pytest.mark.parametrize("name", ["forward", "jsd_warm"])
def test_extras_are_those_of_numpy_at_temperature_1(name):
    inputs = make_inputs(13)
    # Close models agree at some positions and differ at others.
    hidden, head, *rest = inputs
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(V, D)).astype(np.float32)
    inputs = (hidden, head, FrozenHead(hidden, head + 0.3 * noise), *rest[1:])
    got, numpy = run(CASES[name], inputs, chunk_tokens=5, top_k=9)[2], exact_extras(CASES[name], inputs, 9)
    assert set(got) == set(numpy)
    assert 0 < numpy["agreement"] < np.sum(rest[2])
    for extra, value in got.items():
        np.testing.assert_allclose(value, numpy[extra], rtol=TOLERANCE, err_msg=extra)


def test_gap_and_log_ratio_are_those_of_sampled_tokens():
    hidden, head, frozen, targets, weights, _ = make_inputs(13)
    log_s, log_t = log_distributions(hidden, head, frozen)
    taught = np.take_along_axis(log_t, targets[..., None], axis=-1)[..., 0]
    own = np.take_along_axis(log_s, targets[..., None], axis=-1)[..., 0]
    rng = np.random.default_rng(2)
    sampled = np.where(rng.random(own.shape) < 0.6, np.minimum(own + rng.normal(size=own.shape), -1e-3), 0)
    want = np.sum(weights * np.where(sampled < 0, np.abs(own - sampled), 0))
    ids = np.argsort(-log_s, axis=-1)[..., :9].astype(np.int32)
    top = np.take_along_axis(log_s, ids, axis=-1).astype(np.float16)
    tail = (1 - np.exp(top.astype(np.float32)).sum(-1)).clip(0)
    student, of_tokens = [jnp.asarray(x) for x in (hidden, head)], [jnp.asarray(x) for x in (targets, weights)]
    options = {"chunk_tokens": 5, "sampled_log_probs": jnp.asarray(sampled, jnp.float32)}
    _, whole = linear_divergence(
        *student, FrozenHead(*map(jnp.asarray, frozen)), *of_tokens, kind="reverse_kl", **options
    )
    _, buckets = linear_top_k_divergence(*student, *map(jnp.asarray, (ids, top, tail)), *of_tokens, **options)
    for extras in (whole, buckets):
        np.testing.assert_allclose(extras["sampler_gap"], want, rtol=TOLERANCE)
    log_ratios = np.sum(weights * np.where(sampled < 0, own - taught, 0))
    np.testing.assert_allclose(whole["k1"], log_ratios, rtol=1e-4)
    assert "k1" not in buckets


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "context": 2}])
@pytest.mark.parametrize("name", ["forward", "reverse_cool", "jsd_warm", "total_variation"])
def test_eight_devices_with_the_vocabulary_split(name, sizes):
    # More top tokens than the 12 entries that one of eight shards has.
    inputs, k = make_inputs(10), 20
    with jax.set_mesh(make_mesh(**sizes)):
        got = run(CASES[name], inputs, chunk_tokens=3, top_k=k)
    assert_close(got, want(CASES[name], inputs), TOLERANCE)
    for extra, value in exact_extras(CASES[name], inputs, k).items():
        np.testing.assert_allclose(got[2][extra], value, rtol=TOLERANCE, err_msg=extra)


@pytest.mark.parametrize("name", CASES)
def test_equal_models_give_exactly_zero(name):
    hidden, head, _, *rest = make_inputs(11, scale=1.0)
    dtype = jnp.bfloat16 if CASES[name].get("temperature", 1) == 1 else jnp.float32
    hidden, head = jnp.asarray(hidden, dtype), jnp.asarray(head, dtype)
    total, grads, extras = run(CASES[name], (hidden, head, FrozenHead(hidden, head), *rest), chunk_tokens=4)
    assert total == 0 and not any(np.any(grad) for grad in grads)
    for extra in ("kl_forward", "kl_reverse", *(f"kl_group_{group}" for group in range(4))):
        assert extras[extra] == 0, extra
    for extra in ("agreement", "overlap_tv"):
        np.testing.assert_allclose(extras[extra], np.sum(rest[1]), rtol=1e-6)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
@pytest.mark.parametrize("name", ["forward", "jsd_warm"])
def test_equal_models_give_exactly_zero_on_eight_devices(name):
    hidden, head, _, *rest = make_inputs(10)
    with jax.set_mesh(make_mesh(fsdp=4, tensor=2)):
        total, grads, _ = run(CASES[name], (hidden, head, FrozenHead(hidden, head), *rest), chunk_tokens=3)
    assert total == 0 and not any(np.any(grad) for grad in grads)


@pytest.mark.parametrize(("beta", "limit"), [(1e-3, "forward_kl"), (1 - 1e-3, "reverse_kl")])
def test_jsd_tends_to_the_divergences_scaled_by_the_smaller_share(beta, limit):
    inputs = make_inputs(9, scale=0.2)
    total, grads, _ = run({"kind": "jsd", "beta": beta}, inputs, chunk_tokens=4)
    share = min(beta, 1 - beta)
    got = (total / share, [grad / share for grad in grads])
    # The next term is of the order of the share, times moments of the ratio of the two distributions.
    assert_close(got, want({"kind": limit}, inputs), 0.02)
    assert_close((total, grads), want({"kind": "jsd", "beta": beta}, inputs), TOLERANCE)


def test_small_divergences_keep_their_digits():
    hidden, head, _, *rest = make_inputs(7)
    nudge = np.random.default_rng(2).normal(size=head.shape).astype(np.float32)
    inputs = (hidden, head, FrozenHead(hidden, head + np.float32(1e-3) * nudge), *rest)
    for name in ("forward", "reverse"):
        value = want(CASES[name], inputs)[0]
        # Log-probabilities are known to some 1e-7, and their differences of 1e-3 to some 1e-4. With p (log p - log q)
        # alone, the errors of the normalisers do not cancel: then the error is 5e-3.
        assert relative_error(run(CASES[name], inputs, chunk_tokens=3)[0], value) < 1e-3


@pytest.mark.parametrize("name", ["forward", "reverse_cool", "jsd", "total_variation"])
def test_extreme_logits_stay_finite(name):
    T, one_hot = 5, 40
    hidden, head, _, *rest = make_inputs(T)
    # The student gives -1e4 to one token, the teacher all mass to that token, or to another.
    hidden[..., 0], head[:, 0] = 100, 0
    head[one_hot, 0] = -100
    teacher = np.zeros((V, E), np.float32)
    teacher[one_hot, 0], teacher[one_hot + 1, 1] = 1e4, 1e4
    states = np.zeros((*hidden.shape[:2], E), np.float32)
    states[:2, :, 0], states[2:, :, 1] = 1, 1
    total, grads, extras = run(CASES[name], (hidden, head, FrozenHead(states, teacher), *rest), chunk_tokens=2)
    for array in (total, *grads, *extras.values()):
        assert np.all(np.isfinite(array))
    assert total > 0


def test_positions_of_weight_0_change_nothing_whatever_they_hold():
    hidden, head, frozen, targets, weights, groups = make_inputs(10)
    weights[:, 3:6] = 0
    expected = run(CASES["reverse"], (hidden, head, frozen, targets, weights, groups), chunk_tokens=4)
    frozen.hidden[:, 3], frozen.hidden[:, 4], targets[:, 5] = 0, np.nan, -100
    got = run(CASES["reverse"], (hidden, head, frozen, targets, weights, groups), chunk_tokens=4)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert not np.any(got[1][0][:, 3:6])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "jsd"}, "beta=None must lie between 0 and 1 for jsd"),
        ({"kind": "jsd", "beta": 1.0}, r"beta=1\.0 must lie between 0 and 1 for jsd"),
        ({"kind": "reverse_kl", "beta": 0.5}, r"beta=0\.5 is for jsd alone"),
        ({"kind": "forward_kl", "temperature": 0.0}, r"temperature=0\.0 must be positive"),
        ({"kind": "forward_kl", "top_k": 97}, "top_k=97 must be between 1 and the vocabulary's 96 token ids"),
    ],
)
def test_wrong_options_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run(settings, make_inputs(2), chunk_tokens=2)


def test_a_mistyped_divergence_is_refused():
    with pytest.raises(ValueError, match="'kl' is unknown; it must be one of forward_kl, reverse_kl, jsd, total_var"):
        check_options("kl", None, 1.0, None, vocab_size=V)
