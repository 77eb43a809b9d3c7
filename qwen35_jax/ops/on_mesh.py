"""The ops in which tokens of a row meet, on whole rows split over a mesh.

Each device works on its rows, its heads and, where the mesh has an axis ``context``, its part of every row:

* the convolution takes the last inputs of the part before;
* the delta rule folds its part into one affine map of the state before it, and the maps of all parts give each its
  initial state (``gated_delta/README.md``): what is sent does not depend on the number of tokens;
* attention gathers keys and values, of which there are few heads. Parts further right see more of them, so each part
  swaps its second half of queries with the part that mirrors it, which gives all the same work.

Letters: ``B`` batch, ``T`` tokens, ``N`` heads, ``K`` key heads or key width, ``V`` value width, ``H`` head width,
``C`` channels, ``W`` taps.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen35_jax.ops import splash
from qwen35_jax.ops.attention import attention
from qwen35_jax.ops.conv import causal_conv, causal_conv_after
from qwen35_jax.ops.gated_delta import affine_map, gated_delta, kernel_fits
from qwen35_jax.sharding import axis_size, current_platform, over_mesh

_AXIS = "context"
_TOKENS = ("batch", "length")
_HEADS = (*_TOKENS, "heads", None)
_GATES = (*_TOKENS, "heads")


def causal_conv_rows(
    x: Float[Array, "B T C"], weight: Float[Array, "C W"], segment_ids: Int[Array, "B T"] | None
) -> Float[Array, "B T C"]:
    """Convolves whole rows; see ``ops.conv.causal_conv``."""
    parts = _num_parts(x.shape[1])

    def local(x, weight, segment_ids):
        if parts == 1:
            return causal_conv(x, weight, segment_ids=segment_ids)[0]
        end_before = partial(_end_of_part_before, width=weight.shape[1] - 1, parts=parts)
        past_segments = None if segment_ids is None else end_before(segment_ids)
        return causal_conv_after(x, weight, end_before(x), past_segments, segment_ids)

    axes = ((*_TOKENS, "heads"), ("heads", None), _TOKENS)
    return over_mesh(local, x, weight, segment_ids, in_axes=axes, out_axes=axes[0])


def gated_delta_rows(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    segment_ids: Int[Array, "B T"] | None,
) -> Float[Array, "B T N V"]:
    """Runs the gated delta rule over whole rows from a zero state; see ``ops.gated_delta.gated_delta``."""
    parts = _num_parts(q.shape[1])

    def local(q, k, v, log_decay, beta, segment_ids):
        inputs, form = (q, k, v, log_decay, beta), _delta_form(k, v)
        if parts == 1:
            return gated_delta(*inputs, segment_ids=segment_ids, implementation=form)[0]
        entering = None if segment_ids is None else _document_before(segment_ids, parts)
        maps = affine_map(*inputs[1:], segment_ids, entering, implementation=form)
        return gated_delta(*inputs, _state_before(maps, parts), segment_ids, entering, implementation=form)[0]

    axes = (_HEADS, _HEADS, _HEADS, _GATES, _GATES, _TOKENS)
    return over_mesh(local, q, k, v, log_decay, beta, segment_ids, in_axes=axes, out_axes=_HEADS)


def attention_rows(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None,
) -> Float[Array, "B T N H"]:
    """Lets each token attend to the tokens before it in its document; see ``ops.attention.attention``."""
    T, parts = q.shape[1], _num_parts(q.shape[1])
    copies = _num_copies(k.shape[2])
    k, v = (jnp.repeat(x, copies, axis=2) for x in (k, v))
    kernel = _splash_kernel(T, q.shape[2], parts)
    leaves, structure = jax.tree.flatten(kernel)

    def local(q, k, v, segment_ids, *leaves):
        slots, keys = None, (k, v, segment_ids)
        if parts > 1:
            keys = jax.tree.map(lambda x: jax.lax.all_gather(x, _AXIS, axis=1, tiled=True), keys)
            slots = _swap_second_halves(_own_slots(q.shape[1])[None], parts)[0]
            q, segment_ids = (_swap_second_halves(x, parts) for x in (q, segment_ids))
        if kernel is None:
            out = attention(q, *keys[:2], query_slots=slots, segment_ids=segment_ids, key_segment_ids=keys[2])
        else:
            out = splash.splash_attention(jax.tree.unflatten(structure, leaves), q, *keys[:2], segment_ids, keys[2])
        return out if parts == 1 else _swap_second_halves(out, parts)

    leaf_axes = [("length",) if leaf.ndim == 1 else (None, "length", None) for leaf in leaves]
    axes = (_HEADS, _HEADS, _HEADS, _TOKENS, *leaf_axes)
    return over_mesh(local, q, k, v, segment_ids, *leaves, in_axes=axes, out_axes=_HEADS)


def _num_parts(num_tokens: int) -> int:
    """Counts the parts that a row is cut into.

    Raises:
      ValueError: the mesh does not cut such a row.
    """
    parts = axis_size(_AXIS)
    if parts > 1 and num_tokens % (2 * parts):
        raise ValueError(
            f"rows of {num_tokens} tokens cannot be split over mesh.context={parts}; their length must be a multiple "
            f"of {2 * parts}, two halves for each device."
        )
    return parts


def _num_copies(num_key_heads: int) -> int:
    """Counts the copies of each key head that give every device of the axis ``tensor`` one."""
    return max(axis_size("tensor") // num_key_heads, 1)


def _end_of_part_before(x: Array, *, width: int, parts: int) -> Array:
    """Returns the last ``width`` tokens of the part before; zeros for the first part."""
    return jax.lax.ppermute(x[:, -width:], _AXIS, [(i, i + 1) for i in range(parts - 1)])


def _document_before(segment_ids: Int[Array, "B T"], parts: int) -> Int[Array, " B"]:
    """Returns the last document that begins before this part, 0 if there is none."""
    last = jax.lax.all_gather(jnp.max(segment_ids, axis=1), _AXIS)
    before = jnp.arange(parts)[:, None] < jax.lax.axis_index(_AXIS)
    return jnp.max(jnp.where(before, last, 0), axis=0)


def _delta_form(k: Float[Array, "B T N K"], v: Float[Array, "B T N V"]) -> Literal["kernel", "chunked"]:
    return "kernel" if current_platform() == "tpu" and kernel_fits(k, v) else "chunked"


def _state_before(maps: tuple[Array, Array], parts: int) -> Float[Array, "B N K V"]:
    """Returns the state before this part, by folding the affine maps of the parts before it."""
    maps = jax.lax.all_gather(maps, _AXIS)

    def fold(state, xs):
        (transition, written), part = xs
        after = jnp.matmul(transition, state, precision=jax.lax.Precision.HIGHEST) + written
        return jnp.where(part < jax.lax.axis_index(_AXIS), after, state), None

    return jax.lax.scan(fold, jnp.zeros_like(maps[1][0]), (maps, jnp.arange(parts)))[0]


def _own_slots(num_tokens: int) -> Int[Array, " T"]:
    return jax.lax.axis_index(_AXIS) * num_tokens + jnp.arange(num_tokens)


def _swap_second_halves(x: Array | None, parts: int) -> Array | None:
    """Swaps the second half of each part with that of its mirror image. Doing it twice changes nothing."""
    if x is None:
        return None
    first, second = jnp.split(x, 2, axis=1)
    mirrored = jax.lax.ppermute(second, _AXIS, [(i, parts - 1 - i) for i in range(parts)])
    return jnp.concatenate([first, mirrored], axis=1)


def _splash_kernel(num_tokens: int, num_heads: int, parts: int) -> splash.Kernel | None:
    """Returns the kernel for this platform, mesh and length, or None where it is the plain form's turn."""
    if current_platform() != "tpu" or not splash.fits(num_tokens, parts):
        return None
    return splash.make_kernel(num_tokens, num_heads=num_heads // axis_size("tensor"), parts=parts)
