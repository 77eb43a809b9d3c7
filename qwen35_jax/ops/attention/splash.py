"""Attention on a TPU by the splash kernel of JAX, which skips what no token, or no patch, may see.

Letters: ``B`` batch, ``T`` tokens, ``S`` key slots, ``N`` query heads, ``K`` key heads, ``H`` head width, ``M`` blocks.
Vision: ``R`` rows, ``P`` and ``S`` patches as queries and keys.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info
from jaxtyping import Array, Float, Int

from qwen35_jax.ops.attention.frames import blocks_to_visit
from qwen35_jax.sharding import current_platform

Kernel = splash.SplashAttentionKernel

# Tokens in a block of queries or slots. The largest size that divides their number is taken.
_BLOCKS = (512, 256, 128)

# Blocks of keys that a block of queries visits where every frame is small. An image larger than that takes the kernel
# that visits as many as there are.
_FEW = 4


def fits(num_queries: int, num_slots: int, *, num_shards: int = 1) -> bool:
    """Whether the kernel takes this many queries and key slots, with the queries split over this many devices."""
    return _unit(num_queries, num_shards) % _BLOCKS[-1] == 0 and num_slots % _BLOCKS[-1] == 0


def make_kernel(num_tokens: int, *, num_heads: int, num_shards: int = 1) -> Kernel:
    """Makes the kernel of causal attention over whole sequences, interpreted where the platform is no TPU.

    Args:
      num_tokens: queries and slots of a whole sequence.
      num_heads: query heads on one device.
      num_shards: number of devices that the queries are split over, with the second half of each shard swapped with
        that of its mirror image. The leaves of the kernel are split like the queries, along their second or only axis.
    """
    block = _block(_unit(num_tokens, num_shards))
    forward, backward, mask_function = _blocks_to_visit(num_tokens, block, num_heads, num_shards)
    return _kernel(forward, backward, mask_function, block, block)


@functools.lru_cache(maxsize=8)
def _blocks_to_visit(num_tokens: int, block: int, num_heads: int, num_shards: int):
    """Finds out which blocks of slots each block of queries has to visit, forward and backward."""
    # A sequence whose blocks are two tokens long shows in seconds which blocks are empty, full or mixed. For 262,144
    # tokens it would take minutes.
    short = masks.CausalMask((2 * num_tokens // block,) * 2)
    short.q_sequence = _order(2 * num_tokens // block, num_shards)
    every_head = masks.MultiHeadMask([short] * num_heads)
    forward, mask_function = mask_info.process_mask(every_head, (2, 2), q_seq_shards=num_shards)
    backward, _ = mask_info.process_mask_dkv(every_head, (2, 2), q_seq_shards=num_shards)
    # The leaves stay numpy arrays: under the mesh of an ahead-of-time topology there are no devices to put them on.
    forward, backward = (info._replace(q_sequence=_order(num_tokens, num_shards)) for info in (forward, backward))
    return forward, backward, mask_function


def _kernel(forward, backward, mask_function, block_q: int, block_kv: int) -> Kernel:
    sizes = splash.BlockSizes(
        block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv,
        block_q_dkv=block_q, block_kv_dkv=block_kv, block_kv_dkv_compute=block_kv,
        block_q_dq=block_q, block_kv_dq=block_kv,
    )  # fmt: skip
    return Kernel(
        forward, forward, backward,
        block_sizes=sizes, is_mqa=False, save_residuals=False, mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None, residual_checkpoint_name=None, mask_function=mask_function,
        interpret=current_platform() != "tpu",
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
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q * q.shape[-1] ** -0.5, k, v))
    segments = None
    if segment_ids is not None:
        assert key_segment_ids is not None
        segments = splash.SegmentIds(segment_ids, key_segment_ids)
    out = jax.vmap(kernel)(q, k, v, segments)
    assert isinstance(out, jax.Array), "a kernel that saves no residuals returns the outputs alone"
    return jnp.moveaxis(out, 1, 2).astype(v.dtype)


def splash_attention_at(
    query_slots: Int[Array, "B T"],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids: Int[Array, "B T"],
    key_segment_ids: Int[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """Attends with queries whose slots only the device knows, so it visits every block. It has no gradient."""

    def attend(slots, q, k, v, segment_ids, key_segment_ids):
        every_block = mask_info.MaskInfo(None, None, None, None, slots)
        kernel = _kernel(every_block, None, _is_visible, _block(q.shape[1]), _block(k.shape[1]))
        return kernel(q, k, v, splash.SegmentIds(segment_ids, key_segment_ids))

    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q * q.shape[-1] ** -0.5, k, v))
    out = jax.vmap(attend)(query_slots, q, k, v, segment_ids, key_segment_ids)
    assert isinstance(out, jax.Array), "a kernel that saves no residuals returns the outputs alone"
    return jnp.moveaxis(out, 1, 2).astype(v.dtype)


def num_frame_kernels(num_patches: int) -> int:
    """Returns how many kernels a program holds for a row of patches, of which each row takes one."""
    return 1 if num_patches // _block(num_patches) <= _FEW else 2


def frame_splash_attention(
    q: Float[Array, "R P N H"],
    k: Float[Array, "R S N H"],
    v: Float[Array, "R S N H"],
    frames: Int[Array, "R P"],
    key_frames: Int[Array, "R S"],
) -> Float[Array, "R P N H"]:
    """Attends inside frames as ``ops.attention.frame_attention`` does, and visits only blocks that share a frame."""
    block, key_block = _block(q.shape[1]), _block(k.shape[1])

    def row(args):
        q, k, v, frames, key_frames = args
        q, k, v = (jnp.moveaxis(x, 1, 0) for x in (q * q.shape[-1] ** -0.5, k, v))
        visits = blocks_to_visit(frames, key_frames, block, key_block)
        back_visits = blocks_to_visit(key_frames, frames, key_block, block)

        def attend(width: int, back_width: int):
            blocks, visited = _visits(*visits, width)
            forward = mask_info.MaskInfo(blocks[None], None, visited[None], None, None)
            blocks, visited = _visits(*back_visits, back_width)
            backward = mask_info.MaskInfo(blocks.T[None], None, visited.T[None], None, None)
            out = _kernel(forward, backward, None, block, key_block)(q, k, v, splash.SegmentIds(frames, key_frames))
            assert isinstance(out, jax.Array), "a kernel that saves no residuals returns the outputs alone"
            # A block that visits nothing divides by zero.
            return jnp.where((frames > 0)[:, None, None], jnp.moveaxis(out, 0, 1), 0)

        num_blocks, num_key_blocks = q.shape[1] // block, k.shape[1] // key_block
        every = functools.partial(attend, num_key_blocks, num_blocks)
        if max(num_blocks, num_key_blocks) <= _FEW:
            return every()
        is_few = (visits[1].max() <= _FEW) & (back_visits[1].max() <= _FEW)
        few = functools.partial(attend, min(_FEW, num_key_blocks), min(_FEW, num_blocks))
        return jax.lax.cond(is_few, few, every)

    return jax.lax.map(row, (q, k, v, frames, key_frames)).astype(v.dtype)


def _visits(
    first: Int[Array, " M"], count: Int[Array, " M"], width: int
) -> tuple[Int[Array, "M W"], Int[Array, "M W"]]:
    """Lists for each block ``width`` blocks that it fetches, and whether it visits them: no (0) or yes (2).

    Yes means without a mask besides that of the segments. Behind the last visit nothing is fetched anew or computed.
    """
    step = jnp.arange(width)
    blocks = first[:, None] + jnp.minimum(step, jnp.maximum(count - 1, 0)[:, None])
    visited = jnp.where(step < count[:, None], 2, 0)
    return blocks.astype(jnp.int32), visited.astype(jnp.int32)


def _is_visible(query_slots, key_slots):
    return query_slots >= key_slots


def _block(num_tokens: int) -> int:
    return next(size for size in _BLOCKS if num_tokens % size == 0)


def _unit(num_tokens: int, num_shards: int) -> int:
    """Counts the tokens that stay together: a sequence, or half of a shard."""
    return num_tokens if num_shards == 1 else num_tokens // num_shards // 2


def _order(num_tokens: int, num_shards: int) -> np.ndarray:
    """Returns the slot of each query as the shards hold them, one shard after the other."""
    slots = np.arange(num_tokens, dtype=np.int32)
    if num_shards == 1:
        return slots
    halves = slots.reshape(num_shards, 2, -1)
    return np.stack([halves[:, 0], halves[::-1, 1]], axis=1).reshape(-1)
