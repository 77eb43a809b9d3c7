"""The causal depthwise convolution of DeltaNet layers, over packed rows and from one call to the next.

Letters: B batch, T tokens of this call, C channels, W taps.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen35_jax.ops.segments import fill_padding


def causal_conv(
    x: Float[Array, "B T C"],
    weight: Float[Array, "C W"],
    window: Float[Array, "B W-1 C"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    state_segment_ids: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B W-1 C"]]:
    """Convolves each channel with its own W taps over the past of its document, without an activation.

    ``y[t] = sum_w weight[:, w] x[t - (W - 1) + w]``, summed in float32; inputs before a document's start
    count as zeros. Padding is skipped: what it holds is ignored, its output is zero, and where it leads a
    row, the row goes on from `window` behind it.

    Args:
      window: the last W - 1 inputs of the document `state_segment_ids`, oldest first; zeros by default.
      segment_ids: 0 for padding, else the token's document, not decreasing apart from padding, which
        stands only between documents or at the ends of a row. By default the row is one document.
      state_segment_ids: the document that `window` belongs to; by default the row's first document.

    Returns:
      The convolution in the dtype of `x`, and the window after the last token: of the row's last document,
      zeros where that has fewer inputs.

    Raises:
      ValueError: for `state_segment_ids` without `segment_ids`.

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
    # Padding is nobody's: -1, for a window that no document has written yet may call itself 0.
    owners = jnp.where(segment_ids == 0, -1, segment_ids)
    owners = jnp.concatenate([jnp.repeat(state_documents[:, None], W - 1, axis=1), owners], axis=1)
    if window is not None:
        inputs, owners = _skip_leading_padding(inputs, owners, segment_ids, W)
    # The place of the row's last token in `inputs`, or of the window's last entry.
    last = W - 1 + jnp.max(jnp.where(segment_ids != 0, jnp.arange(T), -1), axis=1)
    last = jnp.where(last < W - 1, inputs.shape[1] - 1, last)
    recent = last[:, None] + jnp.arange(2 - W, 1)
    is_last_document = jnp.take_along_axis(owners, recent, axis=1) == documents[:, -1:]
    new_window = jnp.take_along_axis(inputs, recent[..., None], axis=1)
    return _shifted_sum(inputs, weight, owners, segment_ids), jnp.where(is_last_document[..., None], new_window, 0)


def _skip_leading_padding(
    inputs: Float[Array, "B S C"], owners: Int[Array, "B S"], segment_ids: Int[Array, "B T"], W: int
) -> tuple[Float[Array, "B S C"], Int[Array, "B S"]]:
    """Moves the window, the first W - 1 inputs, up to the row's first token; the padding comes before it."""
    num_leading = jnp.sum(jax.lax.cummax(segment_ids, axis=1) == 0, axis=1)
    source = jnp.arange(inputs.shape[1]) - num_leading[:, None]
    moved, moved_owners = inputs, jnp.where(source < 0, -1, owners)
    for w in range(W - 1):
        moved = jnp.where((source == w)[..., None], inputs[:, w : w + 1], moved)
        moved_owners = jnp.where(source == w, owners[:, w : w + 1], moved_owners)
    return moved, moved_owners


@jax.checkpoint
def _shifted_sum(
    inputs: Float[Array, "B S C"],
    weight: Float[Array, "C W"],
    owners: Int[Array, "B S"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T C"]:
    """Sums W shifted products; under `jax.checkpoint`, or the backward pass would keep each shifted input."""
    W = weight.shape[1]
    T = inputs.shape[1] - (W - 1)
    total = jnp.zeros((inputs.shape[0], T, inputs.shape[2]), jnp.float32)
    for w in range(W):
        shifted = inputs[:, w : w + T]
        if segment_ids is not None:
            is_mine = (owners[:, w : w + T] == segment_ids) & (segment_ids != 0)
            shifted = jnp.where(is_mine[..., None], shifted, 0)
        total = total + weight[:, w].astype(jnp.float32) * shifted.astype(jnp.float32)
    return total.astype(inputs.dtype)
