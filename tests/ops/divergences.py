"""Divergences and what is reported beside them, in float64 over the whole vocabulary, as the formulas are written."""

import jax
import numpy as np

from qwen35_jax.ops.linear_cross_entropy import FrozenHead

B, D, E, V = 4, 24, 17, 96
"""Sequences, widths of student and teacher, and token ids, which eight devices can split."""


def make_inputs(T, *, seed=0, scale=0.4):
    """Returns hidden states, head, frozen head, targets, weights (a third of them 0) and groups."""
    rng = np.random.default_rng(seed + T)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    frozen = FrozenHead(normal(B, T, E), scale * normal(V, E))
    weights = rng.random((B, T)) * (rng.random((B, T)) > 0.3)
    targets, groups = (rng.integers(0, n, size=(B, T)).astype(np.int32) for n in (V, 4))
    return normal(B, T, D), scale * normal(V, D), frozen, targets, weights.astype(np.float32), groups


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_distributions(hidden, head, frozen, temperature=1.0):
    """Returns the log-probabilities [B, T, V] of student and teacher in float64."""
    pairs = [(hidden, head), frozen]
    return [log_softmax(np.float64(h) @ np.float64(w).T / temperature) for h, w in pairs]


def kl(log_p, log_q):
    """Returns KL(p || q) at each position; 0 log 0 is 0."""
    p = np.exp(log_p)
    return np.sum(np.where(p > 0, p * (np.where(p > 0, log_p, 0) - log_q), 0), axis=-1)


def divergence(kind, log_s, log_t, beta=None):
    """Returns the divergence at each position and its gradient for the student's logits."""
    s, t = np.exp(log_s), np.exp(log_t)
    if kind == "forward_kl":
        return kl(log_t, log_s), s - t
    if kind == "reverse_kl":
        return kl(log_s, log_t), s * (log_s - log_t - kl(log_s, log_t)[..., None])
    if kind == "jsd":
        log_m = np.logaddexp(np.log(beta) + log_t, np.log1p(-beta) + log_s)
        value = beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)
        return value, (1 - beta) * s * (log_s - log_m - kl(log_s, log_m)[..., None])
    below = s < t
    return 1 - np.minimum(s, t).sum(-1), -s * (below - (s * below).sum(-1, keepdims=True))


def exact(hidden, head, frozen, weights, *, kind, beta=None, temperature=1.0):
    """Returns the weighted sum and its gradients for hidden states and head, and the divergence of each position."""
    value, gradient = divergence(kind, *log_distributions(hidden, head, frozen, temperature), beta)
    value, gradient = temperature**2 * value, temperature * gradient
    return np.sum(weights * value), through_head(hidden, head, weights[..., None] * gradient), value


def through_head(hidden, head, logits_grad):
    """Returns the gradients of hidden states and head from that of the logits."""
    return logits_grad @ np.float64(head), np.einsum("BTV,BTD->VD", logits_grad, np.float64(hidden))


def value_and_gradients(loss, hidden, head, *args):
    """Returns the sum, the gradients of hidden states and head, and the extras of ``loss(hidden, head, *args)``."""
    (total, extras), grads = jax.device_get(
        jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(hidden, head, *args)
    )
    return total, grads, extras


def relative_error(got, want):
    """Returns the norm of the difference as a share of the norm of what is right."""
    return np.linalg.norm(np.float64(got) - want) / np.linalg.norm(want)


def assert_close(got, want, tolerance=1e-5):
    """Compares the value, and each gradient as a whole, relative to the norm of what is right."""
    assert relative_error(got[0], want[0]) < tolerance
    for ours, theirs in zip(got[1], want[1], strict=True):
        assert relative_error(ours, theirs) < tolerance
