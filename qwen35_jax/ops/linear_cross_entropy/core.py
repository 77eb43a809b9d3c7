"""The core of every loss on logits: value and gradients chunk by chunk, so that the logits never exist at once.

It takes hidden states, head weights and a function from a chunk's logits to a sum, its gradient, and further sums that
are only reported. One pass over the chunks computes the value and both gradients. A chunk spans ``chunk_tokens``
positions of every sequence, so sequences keep their placement on a mesh.

Letters: B batch, T tokens, D model width, E width of the frozen model, V vocabulary, C positions in a chunk, M chunks.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PyTree

from qwen35_jax.ops.linear_cross_entropy.vocabulary import VocabularyShard
from qwen35_jax.ops.projection import sum_of_outer_products
from qwen35_jax.sharding import gather_over, is_split, mesh_axes, over_mesh, scatter_sum_over, sum_over


class FrozenHead(NamedTuple):
    """Hidden states and head of a second model, which is not differentiated. It may have another width and dtype."""

    hidden: Float[Array, "B T E"]
    head: Float[Array, "V E"]


Extras = dict[str, Float[Array, ""]]
"""Further float32 sums over the tokens by name, which are reported and get no gradient."""

TokenLoss = Callable[
    [Float[Array, "B C V"], PyTree[Array], VocabularyShard, Float[Array, "B C V"] | None],
    tuple[Float[Array, ""], Float[Array, "B C V"], Extras],
]
"""``token_loss(logits, inputs, shard, frozen_logits)`` for one chunk, on one shard of the vocabulary.

Returns the sum of the losses, its gradient for the logits of this shard, and the extras. The sum and the extras must be
the same on every shard. ``frozen_logits`` is None without a frozen head. Positions whose inputs are all zero must add
nothing to any of them.
"""


class _Arguments(NamedTuple):
    """What is cut into chunks and not differentiated, and the frozen weights."""

    inputs: PyTree[Array]
    frozen: FrozenHead | None


def sum_over_chunks(
    token_loss: TokenLoss,
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    inputs: PyTree[Array],
    *,
    chunk_tokens: int,
    frozen: FrozenHead | None = None,
) -> tuple[Float[Array, ""], Extras]:
    """Sums the values of ``token_loss`` over chunks of tokens; differentiable in ``hidden`` and ``head``.

    Args:
      inputs: arrays of shape [B, T, ...], cut into chunks as the hidden states are. The last chunk is filled up with
        zeros. They are not differentiated.
      chunk_tokens: positions of each sequence per chunk; T need not be a multiple.
      frozen: a second model, whose logits are computed beside those of ``head``, for the same chunk and shard.

    Returns:
      The sum, and the sums of the extras of all chunks, which have no gradient.

    Raises:
      ValueError: ``chunk_tokens`` is not positive, or the frozen head has another vocabulary.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 1; 256 is a good start.")
    if frozen is not None and frozen.head.shape[0] != head.shape[0]:
        raise ValueError(
            f"the frozen head has {frozen.head.shape[0]} token ids and the trained one {head.shape[0]}; both models "
            "must have the same vocabulary."
        )
    return _sum_over_chunks(token_loss, chunk_tokens, hidden, head, _Arguments(inputs, frozen))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_over_chunks(token_loss, chunk_tokens, hidden, head, arguments):
    return _on_mesh(token_loss, chunk_tokens, hidden, head, arguments, gradients=(False, False))[:2]


def _sum_over_chunks_forward(token_loss, chunk_tokens, hidden, head, arguments):
    """Computes the value and, where asked for, the gradients, which are the residuals."""
    arguments = jax.tree.map(lambda x: x.value, arguments, is_leaf=lambda x: hasattr(x, "perturbed"))
    gradients = (True, head.perturbed)
    total, extras, *grads = _on_mesh(token_loss, chunk_tokens, hidden.value, head.value, arguments, gradients=gradients)
    return (total, extras), grads


def _sum_over_chunks_backward(token_loss, chunk_tokens, residuals, cotangents):
    del token_loss, chunk_tokens
    cotangent, _ = cotangents
    if isinstance(cotangent, SymbolicZero):
        return None, None, None
    return *(None if grad is None else (cotangent * grad).astype(grad.dtype) for grad in residuals), None


_sum_over_chunks.defvjp(_sum_over_chunks_forward, _sum_over_chunks_backward, symbolic_zeros=True)


def _on_mesh(
    token_loss: TokenLoss,
    chunk_tokens: int,
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    arguments: _Arguments,
    *,
    gradients: tuple[bool, bool],
) -> tuple[Float[Array, ""], Extras, Float[Array, "B T D"] | None, Float[Array, "V D"] | None]:
    """Computes the sums and the gradients of hidden states and head that are asked for, over the mesh if there is one.

    Over a mesh every device holds an equal shard of the vocabulary and sends its hidden states, chunk by chunk, to
    those that share its tokens: less than the head, and no device ever holds the whole gradient of the head.
    """
    divides = is_split(batch=hidden.shape[0], length=hidden.shape[1], vocab_shards=head.shape[0])
    run = partial(_scan_chunks, token_loss, chunk_tokens, gradients=gradients, split=divides)
    if not divides:
        return run(hidden, head, arguments.frozen, arguments.inputs)
    leaves, structure = jax.tree.flatten(arguments.inputs)
    frozen = (None, None) if arguments.frozen is None else arguments.frozen

    def local(hidden, head, frozen_hidden, frozen_head, *leaves):
        pair = None if frozen_hidden is None else FrozenHead(frozen_hidden, frozen_head)
        return run(hidden, head, pair, jax.tree.unflatten(structure, leaves))

    tokens, vocabulary = ("batch", "length", None), ("vocab_shards", None)
    leaf_axes = [("batch", "length", *(None for _ in leaf.shape[2:])) for leaf in leaves]
    grad_axes = [axes if wanted else () for axes, wanted in zip((tokens, vocabulary), gradients, strict=True)]
    return over_mesh(
        local, hidden, head, *frozen, *leaves,
        in_axes=(tokens, vocabulary, tokens, vocabulary, *leaf_axes), out_axes=((), (), *grad_axes),
    )  # fmt: skip


def _scan_chunks(
    token_loss: TokenLoss,
    chunk_tokens: int,
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    frozen: FrozenHead | None,
    inputs: PyTree[Array],
    *,
    gradients: tuple[bool, bool],
    split: bool,
) -> tuple[Float[Array, ""], Extras, Float[Array, "B T D"] | None, Float[Array, "V D"] | None]:
    """Does the work of ``_on_mesh`` on one device. ``split``: the vocabulary and the tokens are split over the mesh."""
    over_vocab, over_batch, over_length = (
        mesh_axes(name) if split else () for name in ("vocab_shards", "batch", "length")
    )
    # Devices along these axes hold other shards of the vocabulary and other sequences: each needs those of all.
    shared = tuple(axis for axis in over_batch if axis in over_vocab)
    same_tokens = tuple(axis for axis in over_vocab if axis not in shared)
    same_vocab = tuple(axis for axis in (*over_batch, *over_length) if axis not in shared)
    shard = VocabularyShard(jax.lax.axis_index(over_vocab) * head.shape[0] if split else 0, over_vocab)
    weight = head.astype(hidden.dtype)
    frozen_hidden = None if frozen is None else frozen.hidden
    frozen_weight = None if frozen is None else frozen.head.astype(frozen.hidden.dtype)

    def body(carry, chunk):
        total, head_grad = carry
        hidden_BCD, frozen_BCE, chunk_inputs = jax.tree.map(partial(gather_over, shared, axis=0), chunk)
        logits = _logits(hidden_BCD, weight)
        frozen_logits = None if frozen_weight is None else _logits(frozen_BCE, frozen_weight)
        loss, logits_grad, extras = token_loss(logits, chunk_inputs, shard, frozen_logits)
        if not gradients[0]:
            return (total + loss, None), (extras, None)
        logits_grad = logits_grad.astype(hidden.dtype)
        hidden_grad = jnp.einsum("BCV,VD->BCD", logits_grad, weight, preferred_element_type=jnp.float32)
        hidden_grad = sum_over(same_tokens, scatter_sum_over(shared, hidden_grad, axis=0))
        if gradients[1]:
            head_grad += sum_of_outer_products(logits_grad, hidden_BCD, dtype=jnp.float32)
        return (total + loss, head_grad), (extras, hidden_grad.astype(hidden.dtype))

    head_grad = jnp.zeros(head.shape, jnp.float32) if gradients[1] else None
    start = (jnp.zeros((), jnp.float32), head_grad)
    chunks = _cut((hidden, frozen_hidden, inputs), chunk_tokens)
    (total, head_grad), (extras, grads_MBCD) = jax.lax.scan(body, start, chunks)
    extras = jax.tree.map(partial(jnp.sum, axis=0), extras)
    total, extras, head_grad = sum_over(same_vocab, (total, extras, head_grad))
    hidden_grad = None
    if grads_MBCD is not None:
        B, T, D = hidden.shape
        hidden_grad = jnp.moveaxis(grads_MBCD, 0, 1).reshape(B, -1, D)[:, :T]
    return total, extras, hidden_grad, None if head_grad is None else head_grad.astype(head.dtype)


def _logits(hidden: Float[Array, "B C D"], head: Float[Array, "V D"]) -> Float[Array, "B C V"]:
    return jnp.einsum("BCD,VD->BCV", hidden, head, preferred_element_type=jnp.float32)


def _cut(tree: PyTree[Array], chunk_tokens: int) -> PyTree[Array]:
    """Turns [B, T, ...] arrays into [M, B, C, ...] ones, the last chunk filled up with zeros."""

    def cut(x):
        chunk = min(chunk_tokens, x.shape[1])
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut, tree)
