"""Cross-entropy of a linear head, computed chunk by chunk so that the logits never exist at once.

One core serves every loss on logits: it takes hidden states, head weights and a function from a chunk's
logits to a sum and its gradient, and computes value and gradients in a single pass over the chunks. A chunk
spans ``chunk_tokens`` positions of every row, so rows keep their placement on a mesh.

Letters: B batch, T tokens, D model width, V vocabulary, C positions in a chunk, M chunks.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from qwen35_jax.ops.lookup import take_rows
from qwen35_jax.ops.products import sum_of_outer_products
from qwen35_jax.sharding import is_split, over_mesh


class VocabularyPart(NamedTuple):
    """The entries of the vocabulary that a device has logits for, and how to reduce over all parts."""

    first: Int[Array, ""] | int
    axes: tuple[str, ...]

    def logsumexp(self, logits: Float[Array, "B C V"]) -> Float[Array, "B C"]:
        """Returns the logarithm of the sum over the whole vocabulary."""
        if not self.axes:
            return jax.nn.logsumexp(logits, axis=-1)
        largest = jax.lax.pmax(jnp.max(logits, axis=-1), self.axes)
        total = jax.lax.psum(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1), self.axes)
        return jnp.log(total) + largest


TokenLoss = Callable[
    [Float[Array, "B C V"], PyTree[Array], VocabularyPart], tuple[Float[Array, ""], Float[Array, "B C V"]]
]
"""Returns the sum of the losses, which is the same on every part, and its gradient for the part's logits."""


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
    # One row of the head for each token, instead of a search through the chunk's logits.
    rows = take_rows(head, targets, dtype=hidden.dtype)
    target_logits = jnp.einsum("BTD,BTD->BT", hidden, rows, preferred_element_type=jnp.float32)
    inputs = jax.lax.stop_gradient((targets, weights, target_logits))
    return _sum_over_chunks(_cross_entropy, chunk_tokens, hidden, head, inputs)


def _cross_entropy(
    logits: Float[Array, "B C V"],
    inputs: tuple[Int[Array, "B C"], Float[Array, "B C"], Float[Array, "B C"]],
    part: VocabularyPart,
) -> tuple[Float[Array, ""], Float[Array, "B C V"]]:
    targets, weights, target_logits = inputs
    log_sum = part.logsumexp(logits)
    # Compared, not scattered: elementwise work that fuses.
    is_target = part.first + jax.lax.broadcasted_iota(targets.dtype, logits.shape, 2) == targets[..., None]
    gradient = weights[..., None] * (jnp.exp(logits - log_sum[..., None]) - is_target)
    return jnp.sum(weights * (log_sum - target_logits)), gradient


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_over_chunks(
    token_loss: TokenLoss,
    chunk_tokens: int,
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    inputs: PyTree[Array],
) -> Float[Array, ""]:
    """Sums the values of ``token_loss(logits, inputs)`` over chunks of tokens.

    ``inputs`` are [B, T] arrays that are cut like the hidden states and are not differentiated.
    """
    return _on_mesh(token_loss, chunk_tokens, hidden, head, inputs, gradients=(False, False))[0]


def _sum_over_chunks_forward(token_loss, chunk_tokens, hidden, head, inputs):
    """Computes the value and, where asked for, the gradients, which are the residuals."""
    inputs = jax.tree.map(lambda x: x.value, inputs, is_leaf=lambda x: hasattr(x, "perturbed"))
    total, *grads = _on_mesh(
        token_loss, chunk_tokens, hidden.value, head.value, inputs, gradients=(True, head.perturbed)
    )
    return total, grads


def _sum_over_chunks_backward(token_loss, chunk_tokens, residuals, cotangent):
    del token_loss, chunk_tokens
    return *(None if grad is None else (cotangent * grad).astype(grad.dtype) for grad in residuals), None


_sum_over_chunks.defvjp(_sum_over_chunks_forward, _sum_over_chunks_backward, symbolic_zeros=True)


def _on_mesh(
    token_loss: TokenLoss,
    chunk_tokens: int,
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    inputs: PyTree[Array],
    *,
    gradients: tuple[bool, bool],
) -> tuple[Float[Array, ""], Float[Array, "B T D"] | None, Float[Array, "V D"] | None]:
    """Computes the sum and the gradients of hidden states and head that are asked for, over the mesh if there is one.

    Over a mesh every device holds an equal part of the vocabulary and sends its hidden states, chunk by chunk, to those
    that share its tokens: less than the head, and no device ever holds the whole gradient of the head.
    """
    divides = is_split(batch=hidden.shape[0], length=hidden.shape[1], vocab_parts=head.shape[0])
    sharing = ("fsdp", "tensor") if divides else ()
    run = partial(_scan_chunks, token_loss, chunk_tokens, gradients=gradients, sharing=sharing)
    if not divides:
        return run(hidden, head, *inputs)
    tokens, rows = ("batch", "length"), ("vocab_parts", None)
    out_axes = ((), *(axes if wanted else () for axes, wanted in zip(((*tokens, None), rows), gradients, strict=True)))
    in_axes = ((*tokens, None), rows, *(tokens for _ in inputs))
    return over_mesh(run, hidden, head, *inputs, in_axes=in_axes, out_axes=out_axes)


def _scan_chunks(
    token_loss: TokenLoss,
    chunk_tokens: int,
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    *inputs: Array,
    gradients: tuple[bool, bool],
    sharing: tuple[str, ...],
):
    """Does the work of ``_on_mesh`` on one device; ``sharing``: the mesh axes that the vocabulary is split over."""
    weight = head.astype(hidden.dtype)
    first = jax.lax.axis_index(sharing) * head.shape[0] if sharing else 0
    part = VocabularyPart(first, sharing)

    def gather(x: Array) -> Array:
        return jax.lax.all_gather(x, "fsdp", axis=0, tiled=True) if sharing else x

    def body(carry, xs):
        total, head_grad = carry
        hidden_BCD, chunk_inputs = jax.tree.map(gather, xs)
        logits = jnp.einsum("BCD,VD->BCV", hidden_BCD, weight, preferred_element_type=jnp.float32)
        loss, logits_grad = token_loss(logits, chunk_inputs, part)
        if not gradients[0]:
            return (total + loss, None), None
        logits_grad = logits_grad.astype(hidden.dtype)
        hidden_grad = jnp.einsum("BCV,VD->BCD", logits_grad, weight, preferred_element_type=jnp.float32)
        if sharing:
            hidden_grad = jax.lax.psum_scatter(hidden_grad, "fsdp", scatter_dimension=0, tiled=True)
            hidden_grad = jax.lax.psum(hidden_grad, "tensor")
        if gradients[1]:
            head_grad += sum_of_outer_products(logits_grad, hidden_BCD, dtype=jnp.float32)
        return (total + loss, head_grad), hidden_grad.astype(hidden.dtype)

    head_grad = jnp.zeros(head.shape, jnp.float32) if gradients[1] else None
    start = (jnp.zeros((), jnp.float32), head_grad)
    (total, head_grad), grads_MBCD = jax.lax.scan(body, start, _cut((hidden, inputs), chunk_tokens))
    if sharing:
        # Along these axes the tokens differ.
        total, head_grad = jax.lax.psum((total, head_grad), ("data", "context"))
    hidden_grad = None
    if gradients[0]:
        B, T, D = hidden.shape
        hidden_grad = jnp.moveaxis(grads_MBCD, 0, 1).reshape(B, -1, D)[:, :T]
    return total, hidden_grad, None if head_grad is None else head_grad.astype(head.dtype)


def _cut(tree: PyTree[Array], chunk_tokens: int) -> PyTree[Array]:
    """Turns [B, T, ...] arrays into [M, B, C, ...] ones, the last chunk filled up with zeros."""

    def cut(x):
        chunk = min(chunk_tokens, x.shape[1])
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut, tree)
