"""The gated delta rule, the recurrence of DeltaNet layers, in four forms that give the same numbers.

README.md beside this file has the mathematics and says what the backward pass keeps. ``sharded.py`` runs a form over
a mesh; layers call that.

Letters: ``B`` batch, ``T`` tokens of this call, ``N`` value heads, ``K`` key width, ``V`` value width, ``C`` position
in chunk, ``M`` chunks.
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.ops.gated_delta.affine import affine_map
from qwen35_jax.ops.gated_delta.associative import gated_delta_associative
from qwen35_jax.ops.gated_delta.chunked import gated_delta_chunked
from qwen35_jax.ops.gated_delta.kernel import CHUNK_SIZE, KERNEL_PRODUCTS, gated_delta_kernel
from qwen35_jax.ops.gated_delta.kernel import fits as kernel_fits
from qwen35_jax.ops.gated_delta.recurrent import gated_delta_recurrent
from qwen35_jax.sharding import current_platform

__all__ = [
    "CHUNK_SIZE",
    "DELTA_RULES",
    "KERNEL_PRODUCTS",
    "DeltaRule",
    "affine_map",
    "gated_delta",
    "gated_delta_associative",
    "gated_delta_chunked",
    "gated_delta_kernel",
    "gated_delta_recurrent",
    "kernel_fits",
    "l2_normalize",
    "pick",
]

Form = Literal["recurrent", "chunked", "associative", "kernel"]

DeltaRule = Literal["auto", "chunked", "associative", "kernel"]
"""What a user may ask for, by ``model.delta_rule``. ``auto`` is the kernel on a TPU where it fits, else ``chunked``."""

DELTA_RULES = get_args(DeltaRule)


def pick(k: Float[Array, "B T N K"], v: Float[Array, "B T N V"], delta_rule: DeltaRule = "auto") -> Form:
    """Chooses the form for these tokens: the one choice of training, prefill and decoding.

    A single token always takes the recurrence.

    Raises:
      ValueError: ``delta_rule`` is unknown.
    """
    if delta_rule not in DELTA_RULES:
        raise ValueError(f"delta_rule={delta_rule!r} is unknown; choose one of {', '.join(DELTA_RULES)}.")
    if k.shape[1] == 1:
        return "recurrent"
    if delta_rule == "auto":
        return "kernel" if current_platform() == "tpu" and kernel_fits(k, v) else "chunked"
    return delta_rule


def gated_delta(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    state: Float32[Array, "B N K V"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    state_segment_ids: Int[Array, " B"] | None = None,
    *,
    implementation: Form = "chunked",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """Runs the gated delta rule over packed sequences, in float32 for inputs of any dtype.

    For each token of a document: ``S = exp(g) S``, then ``S = S + k beta (v - k S)``, then ``o = q S``.
    A document starts from a zero state, or continues ``state`` if that belongs to it. Padding leaves the
    state as it is, its inputs are ignored (even NaN), and its output is zero.

    Args:
      q, k: queries and keys, L2-normalised, repeated to the value heads; ``q`` already scaled by
        ``K ** -0.5``. A zero key is safe in value and gradient.
      log_decay: natural log ``g`` of the forget gate: finite, at most 0.
      beta: write strength, in [0, 1].
      state: the state before the first token; zeros by default.
      segment_ids: 0 for padding, else the token's document, not decreasing apart from padding. By
        default the sequence is one document that continues ``state``.
      state_segment_ids: the document that ``state`` belongs to; by default the sequence's first document.
      implementation: "recurrent" goes token by token (the oracle; a single token always takes it),
        "chunked" chunk by chunk, "associative" combines chunks in a tree of logarithmic depth, "kernel" is "chunked"
        in kernels for a TPU (see ``kernel_fits``), which no compiler can split over devices by itself.
      chunk_size: tokens per chunk, a power of two from 2 to 512; by default 128 if ``v`` is bfloat16, else 64. Fewer
        tokens use smaller chunks. The kernel's have 128.

    Returns:
      Outputs in the dtype of ``v``; the float32 state of the last document after its last token.

    Raises:
      ValueError: for an unknown implementation, a chunk size that is not a power of two from 2 to 512, inputs that the
        kernel does not take, or ``state_segment_ids`` without ``segment_ids``.

    Source: arXiv:2412.06464; ``torch_recurrent_gated_delta_rule`` and ``torch_chunk_gated_delta_rule`` in
    transformers v5, which know no documents and scale ``q`` themselves.
    """
    if implementation not in get_args(Form):
        raise ValueError(f"implementation={implementation!r} is unknown; choose one of {', '.join(get_args(Form))}.")
    if chunk_size is not None and (not 2 <= chunk_size <= 512 or chunk_size & (chunk_size - 1)):
        raise ValueError(f"chunk_size={chunk_size} is not a power of two from 2 to 512; use 128, or 64 or 32.")
    if state_segment_ids is not None and segment_ids is None:
        raise ValueError("state_segment_ids is given without segment_ids; give both, or neither for one document.")
    state = _zero_state(k, v) if state is None else state
    inputs = (q, k, v, log_decay, beta, state, segment_ids, state_segment_ids)
    if implementation == "recurrent" or q.shape[1] == 1:
        return gated_delta_recurrent(*inputs)
    if implementation == "kernel":
        _check_kernel_inputs(k, v, chunk_size)
        return gated_delta_kernel(*inputs)
    form = gated_delta_chunked if implementation == "chunked" else gated_delta_associative
    return form(*inputs, chunk_size=chunk_size)


def _zero_state(k: Float[Array, "B T N K"], v: Float[Array, "B T N V"]) -> Float32[Array, "B N K V"]:
    B, _, N, K = k.shape
    return jnp.zeros((B, N, K, v.shape[-1]), jnp.float32)


def _check_kernel_inputs(k: Float[Array, "B T N K"], v: Float[Array, "B T N V"], chunk_size: int | None) -> None:
    if not kernel_fits(k, v) or chunk_size not in (None, CHUNK_SIZE):
        raise ValueError(
            f"the kernel does not take k {k.dtype}{list(k.shape)} and v {v.dtype}{list(v.shape)} in chunks of "
            f"{chunk_size or CHUNK_SIZE}; it takes bfloat16 heads of 128, fewer than 8 or a multiple of 8, and at "
            "least 128 tokens in chunks of 128. Use implementation='chunked'."
        )


def l2_normalize(x: Float[Array, "*shape H"], eps: float = 1e-6) -> Float32[Array, "*shape H"]:
    """Divides each vector along the last axis by its length, in float32; a zero vector stays zero.

    Source: ``l2norm`` of transformers v5 and flash-linear-attention: ``eps`` is under the root, added to
    the sum of squares.
    """
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + eps)
