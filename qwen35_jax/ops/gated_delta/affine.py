"""The affine map that a stretch of tokens applies to the state before it. It lets devices share a sequence.

Letters: ``B`` batch, ``T`` tokens, ``N`` value heads, ``K`` key width, ``V`` value width.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.ops.gated_delta import chunked, kernel
from qwen35_jax.ops.gated_delta.chunks import cut_into_chunks


def affine_map(
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    segment_ids: Int[Array, "B T"] | None = None,
    state_segment_ids: Int[Array, " B"] | None = None,
    *,
    implementation: Literal["chunked", "kernel"] = "chunked",
    chunk_size: int | None = None,
) -> tuple[Float32[Array, "B N K K"], Float32[Array, "B N K V"]]:
    """Returns ``P`` and ``R``: tokens that meet the state ``S`` leave ``P S + R``. See ``gated_delta`` for arguments.

    The columns of a state do not interact. So the rule runs on the columns of an identity, to which no value is
    written, and beside them on those of a zero state.
    """
    B, T, N, K = k.shape
    start = jnp.broadcast_to(jnp.eye(K, K + v.shape[-1], dtype=jnp.float32), (B, N, K, K + v.shape[-1]))
    values = jnp.concatenate([jnp.zeros((B, T, N, K), v.dtype), v], axis=-1)
    chunks = cut_into_chunks(None, k, values, log_decay, beta, segment_ids, state_segment_ids, chunk_size=chunk_size)
    form = kernel if implementation == "kernel" else chunked
    _, after = form.run_chunks(chunks, start)
    return after[..., :K], after[..., K:]
