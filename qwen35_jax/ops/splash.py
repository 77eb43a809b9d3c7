"""Causal attention on a TPU by the splash kernel of JAX, which skips what no token may see.

Letters: ``B`` batch, ``T`` tokens, ``S`` key slots, ``N`` query heads, ``K`` key heads, ``H`` head width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info
from jaxtyping import Array, Float, Int

Kernel = splash.SplashAttentionKernel

# Tokens of a block of queries or slots, the largest that divides comes first.
_BLOCKS = (512, 256, 128)


def fits(num_tokens: int, parts: int = 1) -> bool:
    """Whether the kernel takes rows of so many tokens, split over so many devices."""
    return _unit(num_tokens, parts) % _BLOCKS[-1] == 0


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
    block = next(size for size in _BLOCKS if _unit(num_tokens, parts) % size == 0)
    # Which blocks are empty, full or mixed shows on a row where each is two tokens long, found in seconds; on a row of
    # 262,144 tokens it takes minutes.
    short = masks.CausalMask((2 * num_tokens // block,) * 2)
    short.q_sequence = _order(2 * num_tokens // block, parts)
    every_head = masks.MultiHeadMask([short] * num_heads)
    forward, mask_function = mask_info.process_mask(every_head, (2, 2), q_seq_shards=parts)
    backward, _ = mask_info.process_mask_dkv(every_head, (2, 2), q_seq_shards=parts)
    # The leaves stay numpy arrays: under the mesh of an ahead-of-time topology there are no devices to put them on.
    forward, backward = (info._replace(q_sequence=_order(num_tokens, parts)) for info in (forward, backward))
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    return Kernel(
        forward, forward, backward,
        block_sizes=sizes, is_mqa=False, save_residuals=False, mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None, residual_checkpoint_name=None, mask_function=mask_function, interpret=interpret,
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


def _unit(num_tokens: int, parts: int) -> int:
    """Counts the tokens that stay together: a row, or half of a part."""
    return num_tokens if parts == 1 else num_tokens // parts // 2


def _order(num_tokens: int, parts: int) -> np.ndarray:
    """Returns the slot of each query as the parts hold them, one part after the other."""
    slots = np.arange(num_tokens, dtype=np.int32)
    if parts == 1:
        return slots
    halves = slots.reshape(parts, 2, -1)
    return np.stack([halves[:, 0], halves[::-1, 1]], axis=1).reshape(-1)
