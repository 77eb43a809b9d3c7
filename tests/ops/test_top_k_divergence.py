"""The forward divergence in k + 1 buckets, against float64 formulas in numpy and against the whole divergence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.linear_cross_entropy import linear_divergence, linear_top_k_divergence
from qwen35_jax.sharding import make_mesh
from tests.ops.divergences import (
    B,
    V,
    assert_close,
    divergence,
    kl,
    log_distributions,
    make_inputs,
    through_head,
    value_and_gradients,
)


def stored(log_t, k, dtype=np.float16):
    """Returns ids, log-probabilities and tail as a store holds them."""
    ids = np.argsort(-log_t, axis=-1)[..., :k].astype(np.int32)
    log_probs = np.take_along_axis(log_t, ids, axis=-1)
    rest = np.exp(log_t).sum(-1) - np.exp(log_probs).sum(-1)
    return ids, log_probs.astype(dtype), np.maximum(rest, 0).astype(np.float32)


def make_stored(T, k, dtype=np.float16):
    """Returns student, stored signal, targets, weights and groups; and the log-probabilities of both models."""
    hidden, head, frozen, targets, weights, groups = make_inputs(T)
    log_s, log_t = log_distributions(hidden, head, frozen)
    return (hidden, head, *stored(log_t, k, dtype), targets, weights, groups), log_s, log_t


def run(inputs, *, chunk_tokens):
    *inputs, groups = inputs
    options = {"chunk_tokens": chunk_tokens, "with_overlap": True}
    loss = partial(linear_top_k_divergence, groups=jnp.asarray(groups), **options)
    return value_and_gradients(loss, *inputs)


def exact(inputs, log_s):
    """Returns the sum, gradients of hidden states and head, and extras of the k + 1 buckets, in float64."""
    hidden, head, ids, log_probs, tail, targets, weights, groups = inputs
    s, buckets = np.exp(log_s), np.concatenate([np.exp(np.float64(log_probs)), tail[..., None]], axis=-1)
    buckets /= buckets.sum(-1, keepdims=True)
    t, tau = buckets[..., :-1], buckets[..., -1]
    outside = np.ones(log_s.shape, bool)
    np.put_along_axis(outside, ids, False, axis=-1)
    sigma = np.sum(s * outside, axis=-1)
    value = np.sum(t * (np.log(t) - np.take_along_axis(log_s, ids, axis=-1)), axis=-1)
    value += np.where(tau > 0, tau * np.log(np.where(tau > 0, tau / np.where(sigma > 0, sigma, 1), 1)), 0)
    dense = s * (tau / np.where(sigma > 0, sigma, 1))[..., None]
    np.put_along_axis(dense, ids, t, axis=-1)
    is_target = ids == targets[..., None]
    is_known = is_target.any(-1)
    measures = {
        "kl_forward": value,
        "student_entropy": -np.sum(s * log_s, -1),
        "student_loss": -np.take_along_axis(log_s, targets[..., None], axis=-1)[..., 0],
        "agreement": s.argmax(-1) == ids[..., 0],
        "targets_in_top_k": is_known,
        "teacher_loss_bound": -np.log(np.where(is_known, np.sum(t * is_target, -1), tau + (tau == 0))),
        "top_k_overlap": (ids[..., None] == np.argsort(-s, -1)[..., None, : ids.shape[-1]]).any(-1).mean(-1),
        "tail_mass": tau,
        "student_tail_mass": sigma,
    } | {f"kl_group_{group}": value * (groups == group) for group in range(4)}
    extras = {name: np.sum(weights * values) for name, values in measures.items()}
    return np.sum(weights * value), through_head(hidden, head, weights[..., None] * (s - dense)), extras


def assert_equal(got, want):
    # float32 against float64: errors of some 1e-7 for each probability. Gradients are compared by their norms.
    assert_close(got, want)
    assert set(got[2]) == set(want[2])
    for extra, value in want[2].items():
        np.testing.assert_allclose(got[2][extra], value, rtol=1e-5, atol=1e-6, err_msg=extra)


@pytest.mark.parametrize(("T", "chunk_tokens", "k"), [(13, 5, 7), (1, 1, 1), (65, 16, 40), (9, 4, V - 1)])
def test_value_gradients_and_extras_are_those_of_the_formula(T, chunk_tokens, k):
    inputs, log_s, _ = make_stored(T, k)
    assert_equal(run(inputs, chunk_tokens=chunk_tokens), exact(inputs, log_s))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "context": 2}])
@pytest.mark.parametrize("k", [7, V])
def test_eight_devices_with_the_vocabulary_split(sizes, k):
    inputs, log_s, _ = make_stored(10, k)
    with jax.set_mesh(make_mesh(**sizes)):
        got = run(inputs, chunk_tokens=3)
    assert_equal(got, exact(inputs, log_s))


# float16 keeps 11 bits of a log-probability: of those below 16 within 2^-8, of most within 2^-10.
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float16, 2e-3)])
def test_all_token_ids_give_the_whole_forward_divergence(dtype, tolerance):
    inputs, _, _ = make_stored(13, V, dtype)
    hidden, head, frozen, targets, weights, _ = make_inputs(13)
    whole = value_and_gradients(
        partial(linear_divergence, kind="forward_kl", chunk_tokens=5), hidden, head, frozen, targets, weights
    )
    got = run(inputs, chunk_tokens=5)
    assert_close(got, whole, tolerance)
    assert got[2]["tail_mass"] == got[2]["student_tail_mass"] == 0


@pytest.mark.parametrize("k", [4, V])
def test_the_bound_of_the_cross_entropy_is_exact_for_the_k_and_below_it_for_the_tail(k):
    inputs, _, log_t = make_stored(13, k, np.float32)
    *_, targets, weights, _ = inputs
    whole = -np.take_along_axis(log_t, targets[..., None], axis=-1)[..., 0]
    inside = (inputs[2] == targets[..., None]).any(-1)
    for chosen, is_exact in ((inside, True), (~inside, False)):
        chosen = np.float32(chosen & (weights > 0))
        found = run((*inputs[:-2], chosen, inputs[-1]), chunk_tokens=5)[2]
        assert found["targets_in_top_k"] == chosen.sum() * is_exact
        if is_exact:
            np.testing.assert_allclose(found["teacher_loss_bound"], np.sum(chosen * whole), rtol=1e-5)
        elif chosen.any():
            assert 0 < found["teacher_loss_bound"] < 0.9 * np.sum(chosen * whole)
    assert inside.all() == (k == V)


def test_a_tail_that_rounds_to_nothing_bounds_a_target_in_it_by_a_finite_number():
    (*inputs, groups), _, _ = make_stored(5, 3, np.float32)
    inputs[4], inputs[5] = np.zeros_like(inputs[4]), (inputs[2][..., 0] + 1).astype(np.int32) % V
    inputs[2] = np.broadcast_to(inputs[2][..., :1] + np.array([0, 2, 3]), inputs[2].shape).astype(np.int32) % V
    found = run((*inputs, groups), chunk_tokens=5)[2]
    assert found["targets_in_top_k"] == 0 and 80 < found["teacher_loss_bound"] / inputs[6].sum() < 90


@pytest.mark.parametrize("k", [4, 32])
def test_fewer_token_ids_miss_what_happens_within_the_tail_and_nothing_else(k):
    (*_, groups), log_s, log_t = make_stored(6, k)
    # Logits that are the hidden states themselves: their gradient is that of the logits.
    inputs = (np.float32(log_s), np.eye(V, dtype=np.float32), *stored(log_t, k, np.float32))
    ones = np.ones(groups.shape, np.float32)
    total, (gradient, _), _ = run((*inputs, groups, ones, groups), chunk_tokens=4)
    value, whole = divergence("forward_kl", log_s, log_t)

    tau = np.float64(inputs[-1])
    distance = np.abs(gradient - whole).sum(-1)
    assert np.all(distance <= 2 * tau + 1e-6)
    assert np.any(distance > 0.5 * tau)

    inside = np.zeros(log_s.shape, bool)
    np.put_along_axis(inside, inputs[2], True, axis=-1)
    np.testing.assert_allclose(gradient[inside], whole[inside], rtol=1e-5, atol=1e-7)
    tails = [np.where(inside, -np.inf, log_p) for log_p in (log_s, log_t)]
    tails = [log_p - np.log(np.exp(log_p).sum(-1, keepdims=True)) for log_p in tails]
    within = kl(tails[1], np.where(inside, 0, tails[0]))
    np.testing.assert_allclose(np.sum(value) - total, np.sum(tau * within), rtol=1e-4)


def test_buckets_are_divided_by_their_sum():
    inputs, _, _ = make_stored(6, 9, np.float32)
    hidden, head, ids, log_probs, tail, *rest = inputs
    got = run((hidden, head, ids, log_probs + np.log(np.float32(1.25)), tail * np.float32(1.25), *rest), chunk_tokens=4)
    assert_close(got, run(inputs, chunk_tokens=4))


def test_a_teacher_equal_to_the_student_gives_zero_within_rounding():
    (hidden, head, *_, targets, weights, groups), log_s, _ = make_stored(6, 9)
    total, grads, _ = run((hidden, head, *stored(log_s, 9, np.float32), targets, weights, groups), chunk_tokens=4)
    assert abs(total) < 1e-5 and all(np.max(np.abs(grad)) < 1e-5 for grad in grads)


@pytest.mark.parametrize("k", [3, V])
def test_extreme_logits_and_probabilities_of_0_stay_finite(k):
    (hidden, head, *_, targets, weights, groups), _, _ = make_stored(5, k)
    # The student is certain of one token, gives -1e4 to the next, and underflows elsewhere.
    hidden[..., 0], head[:, 0] = 100, 0
    head[40, 0], head[41, 0] = 100, -100
    ids = np.broadcast_to(np.roll(np.arange(V), -40)[:k], (B, 5, k)).astype(np.int32)
    log_probs, tail = np.full((B, 5, k), -np.inf, np.float16), np.zeros((B, 5), np.float32)
    log_probs[:2, :, 0], log_probs[2:, :, 1] = 0, 0
    tail[1], tail[2] = 1e-30, 1
    total, grads, extras = run((hidden, head, ids, log_probs, tail, targets, weights, groups), chunk_tokens=2)
    for array in (total, *grads, *extras.values()):
        assert np.all(np.isfinite(array))
    assert total > 0


@pytest.mark.parametrize("filling", [0, np.nan])
def test_positions_of_weight_0_change_nothing_whatever_they_hold(filling):
    (hidden, head, ids, log_probs, tail, targets, weights, groups), _, _ = make_stored(10, 5)
    weights[:, 3:6] = 0
    expected = run((hidden, head, ids, log_probs, tail, targets, weights, groups), chunk_tokens=4)
    ids[:, 3:6], log_probs[:, 3:6], tail[:, 3:6], targets[:, 3:6] = 0, filling, filling, -100
    got = run((hidden, head, ids, log_probs, tail, targets, weights, groups), chunk_tokens=4)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert not np.any(got[1][0][:, 3:6])


def test_there_are_not_more_token_ids_than_the_vocabulary_has():
    inputs, _, _ = make_stored(2, 5)
    wider = np.zeros((B, 2, V + 1))
    with pytest.raises(ValueError, match="97 token ids at a position; there must be between 1 and the vocabulary's 96"):
        run((*inputs[:2], np.int32(wider), np.float16(wider), *inputs[4:]), chunk_tokens=2)
