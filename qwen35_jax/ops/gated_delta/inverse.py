"""The inverse of a unit lower triangular matrix by doubling its diagonal blocks: matrix products alone.

Letters: S any leading axes, C size of the matrix, H half of it.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from qwen35_jax.ops.gated_delta.product import product

# The inverse doubles its blocks inside tiles of this size by masked products of whole tiles, above it block by block.
# Compiled for a TPU (v5e), smaller tiles waste the matrix unit on slivers: the inverse at C = 64 costs 3.8 times as
# much with blocks from size 1 as with masks throughout, and 1.1 times with this tile, at a quarter of the arithmetic.
_TILE = 32


def invert_halves(system: Float32[Array, "*S C C"]) -> Float32[Array, "*S 2 H H"]:
    """Inverts the two diagonal halves of ``I + system`` for a strictly lower triangular system.

    C is a power of two, at least 2. Once two neighbouring diagonal blocks of size b are inverted, the block below the
    first of them is ``-second (system's block) first``: two products lead from b to 2b, and no power of the system
    is formed.
    """
    half = system.shape[-1] // 2
    size = min(half, _TILE)
    inverse = _invert_tiles(_blocks(system, size, offset=0, stride=size))
    while size < half:
        inverse = _double(system, inverse)
        size *= 2
    return inverse


def join_halves(system: Float32[Array, "*S C C"], halves: Float32[Array, "*S 2 H H"]) -> Float32[Array, "*S C C"]:
    """Returns the inverse of ``I + system`` from the inverses of its diagonal halves."""
    return _double(system, halves)[..., 0, :, :]


def _double(system: Float32[Array, "*S C C"], inverse: Float32[Array, "*S G b b"]) -> Float32[Array, "*S G/2 2*b 2*b"]:
    size = inverse.shape[-1]
    first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
    system = _blocks(system, size, offset=size, stride=2 * size)
    below = -_matmul(second, _matmul(system, first))
    return jnp.block([[first, jnp.zeros_like(first)], [below, second]])


def _invert_tiles(system: Float32[Array, "*S C C"]) -> Float32[Array, "*S C C"]:
    """The same doubling with all blocks of a tile in place: a mask picks the blocks below the diagonal."""
    C = system.shape[-1]

    def below(size: int) -> Array:
        block = np.arange(C) // size
        return jnp.where((block[:, None] == block[None, :] + 1) & (block[:, None] % 2 == 1), system, 0)

    inverse = jnp.eye(C, dtype=jnp.float32) - below(1)
    size = 2
    while size < C:
        inverse = inverse - _matmul(inverse, _matmul(below(size), inverse))
        size *= 2
    return inverse


def _matmul(a: Array, b: Array) -> Array:
    return product("...CD,...DE->...CE", a, b)


def _blocks(x: Float32[Array, "*S C C"], size: int, *, offset: int, stride: int) -> Float32[Array, "*S G size size"]:
    """Stacks the square blocks whose columns start at multiples of `stride` and whose rows start `offset` lower."""
    corners = range(0, x.shape[-1], stride)
    return jnp.stack([x[..., i + offset : i + offset + size, i : i + size] for i in corners], axis=-3)
