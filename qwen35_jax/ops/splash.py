"""Causal attention on a TPU by the splash kernel of JAX, which skips what no token may see.

Letters: ``B`` batch, ``T`` tokens, ``S`` key slots, ``N`` query heads, ``K`` key heads, ``H`` head width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

Kernel = splash.SplashAttentionKernel

_BLOCKS = (512, 256, 128)


def fits(num_queries: int, num_slots: int) -> bool:
    """Whether the kernel takes so many queries on a device, and so many slots."""
    return num_queries % _BLOCKS[-1] == 0 and num_slots % _BLOCKS[-1] == 0


@functools.lru_cache(maxsize=8)
def make_kernel(num_tokens: int, *, num_heads: int, parts: int = 1, interpret: bool = False) -> Kernel:
    """Finds out which blocks of slots each block of queries has to visit.

    Args:
      num_tokens: queries and slots of a whole row.
      num_heads: query heads on one device.
      parts: number of devices that the queries are split over, with the second half of each part swapped with that of
        its mirror image. The leaves of the kernel are split like the queries, along their second or only axis.
      interpret: run on a CPU, for tests.
    """
    halves = np.arange(num_tokens, dtype=np.int32).reshape(parts, 2, -1)
    mask = masks.CausalMask((num_tokens, num_tokens))
    mask.q_sequence = np.stack([halves[:, 0], halves[::-1, 1]], axis=1).reshape(-1) if parts > 1 else halves.reshape(-1)
    block = next(size for size in _BLOCKS if num_tokens // parts % size == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    # Numbers, not arrays of the trace that happens to ask first.
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mha(
            masks.MultiHeadMask([mask] * num_heads), block_sizes=sizes, head_shards=1, q_seq_shards=parts,
            interpret=interpret,
        )  # fmt: skip


def splash_attention(
    kernel: Kernel,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids: Int[Array, "B T"] | None,
    key_segment_ids: Int[Array, "B S"] | None,
) -> Float[Array, "B T N H"]:
    """Attends as ``ops.attention.attention`` does, with the visible slots that ``kernel`` was made for."""
    heads_first = (jnp.moveaxis(x, 2, 1) for x in (q * q.shape[-1] ** -0.5, k, v))
    segments = None if segment_ids is None else splash.SegmentIds(segment_ids, key_segment_ids)
    out = jax.vmap(kernel)(*heads_first, segments)
    return jnp.moveaxis(out, 1, 2).astype(v.dtype)
