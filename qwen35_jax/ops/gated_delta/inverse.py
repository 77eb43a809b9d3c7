"""The inverse of a unit lower triangular matrix by matrix products alone: coarsely by doubling blocks, then refined.

Letters: S any leading axes, C size of the matrix, H half of it.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from qwen35_jax.ops.gated_delta.product import coarse_product, product

# Each step squares the error, down to that of its residual. Doubling in bfloat16 is off by some 1e-2 when keys are
# parallel, so that two steps lead to float32, and the first one's residual need not be exact.
_RESIDUALS = (jnp.bfloat16, jnp.float32)


def invert_halves(system: Float32[Array, "*S C C"]) -> Float32[Array, "*S 2 H H"]:
    """Inverts the two diagonal halves of ``I + system`` for a strictly lower triangular system.

    C is a power of two, at least 2. The products of the doubling may be coarse (one bfloat16 pass on a TPU), since
    ``X + X (I - (I + system) X)`` then brings an approximate inverse X to float32.
    """
    H = system.shape[-1] // 2
    system = jnp.stack([system[..., :H, :H], system[..., H:, H:]], axis=-3)
    inverse = _double_blocks(system)
    for precision in _RESIDUALS:
        residual = jnp.eye(H, dtype=jnp.float32) - inverse - product(_SPEC, system, inverse, rounded_to=precision)
        inverse = inverse + coarse_product(_SPEC, inverse, residual)
    return inverse


def join_halves(system: Float32[Array, "*S C C"], halves: Float32[Array, "*S 2 H H"]) -> Float32[Array, "*S C C"]:
    """Returns the inverse of ``I + system`` from the inverses of its diagonal halves."""
    H = halves.shape[-1]
    first, second = halves[..., 0, :, :], halves[..., 1, :, :]
    below = -product(_SPEC, second, product(_SPEC, system[..., H:, :H], first))
    return jnp.block([[first, jnp.zeros_like(first)], [below, second]])


def _double_blocks(system: Float32[Array, "*S H H"]) -> Float32[Array, "*S H H"]:
    """Inverts ``I + system`` coarsely, from diagonal blocks of size 1 on.

    Once two neighbouring diagonal blocks are inverted, the block below the first is ``-second (system's block) first``;
    no power of the system is formed. All blocks stay in place, a mask picks those below the diagonal: a matrix unit
    gains nothing from smaller products.
    """
    H = system.shape[-1]

    def below(size: int) -> Array:
        block = np.arange(H) // size
        return jnp.where((block[:, None] == block[None, :] + 1) & (block[:, None] % 2 == 1), system, 0)

    inverse = jnp.eye(H, dtype=jnp.float32) - below(1)
    size = 2
    while size < H:
        inverse = inverse - coarse_product(_SPEC, inverse, coarse_product(_SPEC, below(size), inverse))
        size *= 2
    return inverse


_SPEC = "...CD,...DE->...CE"
