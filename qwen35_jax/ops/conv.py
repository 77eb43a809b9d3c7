"""The causal depthwise convolution of DeltaNet layers, over packed sequences and from one call to the next.

Letters: ``B`` batch, ``T`` tokens of this call, ``C`` channels, ``W`` taps.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.ops.segments import fill_padding
from qwen35_jax.sharding import over_mesh, send_shards, sequence_shards


def causal_conv(
    x: Float[Array, "B T C"],
    weight: Float[Array, "C W"],
    window: Float[Array, "B W-1 C"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    state_segment_ids: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B W-1 C"]]:
    """Convolves each channel with its own W taps over the past of its document, without an activation.

    ``y[t] = sum_w weight[:, w] x[t - (W - 1) + w]``, summed in float32; inputs before a document's start
    count as zeros. Padding is skipped: its inputs are ignored and its outputs are zero. After
    padding at its start a sequence goes on from ``window``.

    Args:
      window: the last W - 1 inputs of the document ``state_segment_ids``, oldest first; zeros by default.
      segment_ids: 0 for padding, else the token's document, not decreasing apart from padding, which
        stands only between documents or at the ends of a sequence. By default that is one document.
      state_segment_ids: the document that ``window`` belongs to; by default the sequence's first document.

    Returns:
      The convolution in the dtype of ``x``; the window after the last token, with inputs of the last document and
      zeros where that has fewer.

    Raises:
      ValueError: for ``state_segment_ids`` without ``segment_ids``.

    Source: ``causal_conv1d_fn`` and ``causal_conv1d_update`` in transformers v5, which know no documents.
    """
    if state_segment_ids is not None and segment_ids is None:
        raise ValueError("state_segment_ids is given without segment_ids; give both, or neither for one document.")
    B, T, C = x.shape
    W = weight.shape[1]
    past = jnp.zeros((B, W - 1, C), x.dtype) if window is None else window.astype(x.dtype)
    inputs = jnp.concatenate([past, x], axis=1)
    if segment_ids is None:
        return _shifted_sum(inputs, weight), inputs[:, T:]

    documents, state_documents = fill_padding(segment_ids, state_segment_ids)
    # Padding belongs to no document: -1. It is not 0, for a window that no document has written yet has the id 0.
    owners = jnp.where(segment_ids == 0, -1, segment_ids)
    owners = jnp.concatenate([jnp.repeat(state_documents[:, None], W - 1, axis=1), owners], axis=1)
    if window is not None:
        inputs, owners = _skip_leading_padding(inputs, owners, segment_ids, W)
    # The place of the last token in ``inputs``, or of the window's last entry.
    last = W - 1 + jnp.max(jnp.where(segment_ids != 0, jnp.arange(T), -1), axis=1)
    last = jnp.where(last < W - 1, inputs.shape[1] - 1, last)
    recent = last[:, None] + jnp.arange(2 - W, 1)
    is_last_document = jnp.take_along_axis(owners, recent, axis=1) == documents[:, -1:]
    new_window = jnp.take_along_axis(inputs, recent[..., None], axis=1)
    return _shifted_sum(inputs, weight, owners, segment_ids), jnp.where(is_last_document[..., None], new_window, 0)


def causal_conv_sharded(
    x: Float[Array, "B T C"],
    weight: Float[Array, "C W"],
    window: Float[Array, "B W-1 C"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    state_segment_ids: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B W-1 C"] | None]:
    """Runs ``causal_conv`` over the mesh. Where that splits sequences, each device gets the inputs before its stretch.

    Returns:
      The convolution; the window after the last token if a window was given, else None.

    Raises:
      ValueError: a window is given and the mesh splits sequences.
    """
    shards, tokens = sequence_shards(x.shape[1]), ("batch", "length")
    if window is not None and shards > 1:
        raise ValueError("a convolution that continues a window cannot be split over tokens; use mesh.context=1.")

    def local(x, weight, window, segment_ids, state_segment_ids):
        if window is not None:
            return causal_conv(x, weight, window, segment_ids, state_segment_ids)
        if shards == 1:
            return causal_conv(x, weight, segment_ids=segment_ids)[0]
        width = weight.shape[1] - 1
        past_segment_ids = None if segment_ids is None else _end_of_shard_before(segment_ids, width, shards)
        return _causal_conv_after(x, weight, _end_of_shard_before(x, width, shards), past_segment_ids, segment_ids)

    axes = ((*tokens, "heads"), ("heads", None), ("batch", None, "heads"), tokens, ("batch",))
    args = (x, weight, window, segment_ids, state_segment_ids)
    if window is None:
        return over_mesh(local, *args, in_axes=axes, out_axes=axes[0]), None
    return over_mesh(local, *args, in_axes=axes, out_axes=(axes[0], axes[2]))


def _end_of_shard_before(x: Array, width: int, shards: int) -> Array:
    """Returns the last ``width`` tokens of the stretch before; zeros for the first one."""
    return send_shards(x[:, -width:], "length", [(i, i + 1) for i in range(shards - 1)])


def _causal_conv_after(
    x: Float[Array, "B T C"],
    weight: Float[Array, "C W"],
    past: Float[Array, "B W-1 C"],
    past_segment_ids: Int[Array, "B W-1"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T C"]:
    """Convolves a stretch of a sequence, given the W - 1 inputs right before it; see ``causal_conv``.

    Args:
      past, past_segment_ids: what stands before the stretch, padding and other documents included; zeros
        before the first one.
    """
    owners = None
    if segment_ids is not None:
        assert past_segment_ids is not None
        owners = jnp.concatenate([past_segment_ids, segment_ids], axis=1)
    return _shifted_sum(jnp.concatenate([past, x], axis=1), weight, owners, segment_ids)


def _skip_leading_padding(
    inputs: Float[Array, "B S C"], owners: Int[Array, "B S"], segment_ids: Int[Array, "B T"], W: int
) -> tuple[Float[Array, "B S C"], Int[Array, "B S"]]:
    """Moves the window (the first W - 1 inputs) right before the first token; the padding then precedes it."""
    num_leading = jnp.sum(lax.cummax(segment_ids, axis=1) == 0, axis=1)
    source = jnp.arange(inputs.shape[1]) - num_leading[:, None]
    moved, moved_owners = inputs, jnp.where(source < 0, -1, owners)
    for w in range(W - 1):
        moved = jnp.where((source == w)[..., None], inputs[:, w : w + 1], moved)
        moved_owners = jnp.where(source == w, owners[:, w : w + 1], moved_owners)
    return moved, moved_owners


@jax.custom_vjp
def _shifted_sum(
    inputs: Float[Array, "B S C"],
    weight: Float[Array, "C W"],
    owners: Int[Array, "B S"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T C"]:
    """Sums W shifted products. The backward pass keeps only the arguments, not each shifted input."""
    C, W = weight.shape
    B, T = inputs.shape[0], inputs.shape[1] - (W - 1)
    total = jnp.zeros((B, T, C), jnp.float32)
    for w in range(W):
        total = total + weight[:, w].astype(jnp.float32) * _shifted(inputs, w, T, owners, segment_ids)
    return total.astype(inputs.dtype)


def _shifted(
    x: Float[Array, "B S C"],
    w: int | Int[Array, ""],
    T: int,
    owners: Int[Array, "B S"] | None,
    segment_ids: Int[Array, "B T"] | None,
) -> Float32[Array, "B T C"]:
    """Returns the input that tap ``w`` reads for each token, in float32; zero for padding and across documents."""
    shifted = lax.dynamic_slice_in_dim(x, w, T, axis=1).astype(jnp.float32)
    if segment_ids is None:
        return shifted
    assert owners is not None
    is_mine = (lax.dynamic_slice_in_dim(owners, w, T, axis=1) == segment_ids) & (segment_ids != 0)
    return jnp.where(is_mine[..., None], shifted, 0)


def _shifted_sum_forward(inputs, weight, owners=None, segment_ids=None):
    return _shifted_sum(inputs, weight, owners, segment_ids), (inputs, weight, owners, segment_ids)


def _shifted_sum_backward(residuals, cotangent):
    inputs, weight, owners, segment_ids = residuals
    W, T = weight.shape[1], cotangent.shape[1]
    cotangent = cotangent.astype(jnp.float32)

    def read(inputs):
        return [_shifted(inputs, w, T, owners, segment_ids) for w in range(W)]

    (inputs_cotangent,) = jax.linear_transpose(read, inputs)(
        [weight[:, w].astype(jnp.float32) * cotangent for w in range(W)]
    )
    # The loop over taps makes XLA compute the cotangent once. Without it the sum over tokens of each tap would compute
    # it again, through the activation and this convolution: the whole would take twice the time on a CPU.
    weight_cotangent = lax.map(
        lambda w: jnp.sum(cotangent * _shifted(inputs, w, T, owners, segment_ids), axis=(0, 1)), jnp.arange(W)
    )
    return inputs_cotangent, weight_cotangent.T.astype(weight.dtype), None, None


_shifted_sum.defvjp(_shifted_sum_forward, _shifted_sum_backward)
