"""Cross-entropy of a linear head, computed chunk by chunk so that the logits never exist at once.

One core serves every loss on logits: it takes hidden states, head weights and a function from a chunk's
logits to a sum and its gradient, and computes value and gradients in a single pass over the chunks. A chunk
spans ``chunk_tokens`` positions of every row, so rows keep their placement on a mesh.

Letters: B batch, T tokens, D model width, V vocabulary, C positions in a chunk, M chunks.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from qwen35_jax.ops.products import sum_of_outer_products

TokenLoss = Callable[[Float[Array, "B C V"], PyTree[Array]], tuple[Float[Array, ""], Float[Array, "B C V"]]]


def linear_cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunk_tokens: int,
) -> Float[Array, ""]:
    """Sums ``weights * -log softmax(hidden @ head.T)[targets]`` over all tokens.

    The product runs in the dtype of ``hidden`` with float32 accumulation; softmax, sums and the gradient
    of the head accumulate in float32. Differentiating costs one pass (the gradients are made beside the
    value); a head that is not differentiated costs nothing. Memory: one chunk of float32 logits,
    ``B * chunk_tokens * V * 4`` bytes, about twice that while differentiating, and a row of the head for
    each token, as much as ``hidden`` takes.

    Args:
      targets: token ids in [0, V); ignored where the weight is 0.
      weights: weight of each token, 0 for tokens that do not train. Not differentiated.
      chunk_tokens: positions of each row per chunk; T need not be a multiple.

    Returns:
      The float32 sum; the caller divides by its own count.

    Raises:
      ValueError: ``chunk_tokens`` is not positive.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 1; 256 is a good start.")
    num_tokens = hidden.shape[1]
    chunk = min(chunk_tokens, num_tokens)
    padding = ((0, 0), (0, -num_tokens % chunk))
    hidden = jnp.pad(hidden, (*padding, (0, 0)))
    targets, weights = jnp.pad(targets, padding), jnp.pad(weights, padding)
    # One row of the head for each token, instead of a search through the chunk's logits. Any target may stand where
    # the weight is 0, so it is clipped: out of range, `take` would give NaN.
    rows = jnp.take(head, targets, axis=0, mode="clip").astype(hidden.dtype)
    target_logits = jnp.einsum("BTD,BTD->BT", hidden, rows, preferred_element_type=jnp.float32)
    inputs = jax.lax.stop_gradient((targets, weights, target_logits))
    return _sum_over_chunks(_cross_entropy, chunk, hidden, head, inputs)


def _cross_entropy(
    logits: Float[Array, "B C V"], inputs: tuple[Int[Array, "B C"], Float[Array, "B C"], Float[Array, "B C"]]
) -> tuple[Float[Array, ""], Float[Array, "B C V"]]:
    targets, weights, target_logits = inputs
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    # Compared, not scattered: elementwise work that fuses and that a vocabulary split over a mesh leaves in place.
    is_target = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 2) == targets[..., None]
    gradient = weights[..., None] * (jnp.exp(logits - log_sum[..., None]) - is_target)
    return jnp.sum(weights * (log_sum - target_logits)), gradient


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_over_chunks(
    token_loss: TokenLoss,
    chunk: int,
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    inputs: PyTree[Array],
) -> Float[Array, ""]:
    """Sums the values of ``token_loss(logits, inputs)`` over chunks; T is a multiple of ``chunk``.

    ``inputs`` are [B, T, ...] arrays that are cut like the hidden states and are not differentiated.
    """
    weight = head.astype(hidden.dtype)

    def body(total, xs):
        hidden_BCD, chunk_inputs = xs
        return total + token_loss(_logits(hidden_BCD, weight), chunk_inputs)[0], None

    total, _ = jax.lax.scan(body, jnp.zeros((), jnp.float32), _cut((hidden, inputs), chunk))
    return total


def _sum_over_chunks_forward(token_loss, chunk, hidden, head, inputs):
    """Computes the value and, where asked for, the gradients, which are the residuals."""
    head_trains = head.perturbed
    hidden, head = hidden.value, head.value
    inputs = jax.tree.map(lambda x: x.value, inputs, is_leaf=lambda x: hasattr(x, "perturbed"))
    weight = head.astype(hidden.dtype)

    def body(carry, xs):
        total, head_grad = carry
        hidden_BCD, chunk_inputs = xs
        loss, logits_grad = token_loss(_logits(hidden_BCD, weight), chunk_inputs)
        logits_grad = logits_grad.astype(hidden.dtype)
        hidden_grad = jnp.einsum("BCV,VD->BCD", logits_grad, weight, preferred_element_type=jnp.float32)
        if head_trains:
            head_grad += sum_of_outer_products(logits_grad, hidden_BCD, dtype=jnp.float32)
        return (total + loss, head_grad), hidden_grad.astype(hidden.dtype)

    head_grad = jnp.zeros(head.shape, jnp.float32) if head_trains else None
    start = (jnp.zeros((), jnp.float32), head_grad)
    (total, head_grad), grads_MBCD = jax.lax.scan(body, start, _cut((hidden, inputs), chunk))
    hidden_grad = jnp.moveaxis(grads_MBCD, 0, 1).reshape(hidden.shape)
    head_grad = head_grad.astype(head.dtype) if head_trains else None
    return total, (hidden_grad, head_grad)


def _sum_over_chunks_backward(token_loss, chunk, residuals, cotangent):
    del token_loss, chunk
    hidden_grad, head_grad = (None if grad is None else (cotangent * grad).astype(grad.dtype) for grad in residuals)
    return hidden_grad, head_grad, None


_sum_over_chunks.defvjp(_sum_over_chunks_forward, _sum_over_chunks_backward, symbolic_zeros=True)


def _logits(hidden_BCD: Float[Array, "B C D"], weight: Float[Array, "V D"]) -> Float[Array, "B C V"]:
    return jnp.einsum("BCD,VD->BCV", hidden_BCD, weight, preferred_element_type=jnp.float32)


def _cut(tree: PyTree[Array], chunk: int) -> PyTree[Array]:
    """Turns [B, M * C, ...] arrays into [M, B, C, ...] ones."""

    def cut(x):
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut, tree)
