"""The inverse of a unit lower triangular matrix by matrix products alone: coarsely by doubling blocks, then refined.

Letters: ``S`` any leading axes, ``C`` size of the matrix, ``H`` half of it.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32

from qwen35_jax.ops.gated_delta.precision import XLA, Arithmetic

# Each step squares the error, down to that of its residual. Doubling in bfloat16 is off by some 1e-2 when keys are
# parallel, so that two steps lead to float32, and the first one's residual need not be exact.
_RESIDUALS = (jnp.bfloat16, jnp.float32)


def invert(system: Float32[Array, "*S C C"], arithmetic: Arithmetic) -> Float32[Array, "*S C C"]:
    """Inverts ``I + system`` for a strictly lower triangular system; C is a power of two.

    The products of the doubling may be coarse (one bfloat16 pass on a TPU), since ``X + X (I - (I + system) X)`` then
    brings an approximate inverse X to float32.
    """
    inverse = _double_blocks(system, arithmetic)
    for precision in _RESIDUALS:
        known = inverse + arithmetic.product(_SPEC, system, inverse, rounded_to=precision)
        inverse = inverse + arithmetic.coarse_product(_SPEC, inverse, _identity(system) - known)
    return inverse


def invert_halves(system: Float32[Array, "*S C C"]) -> Float32[Array, "*S 2 H H"]:
    """Inverts the two diagonal halves of ``I + system``; C is at least 2."""
    H = system.shape[-1] // 2
    return invert(jnp.stack([system[..., :H, :H], system[..., H:, H:]], axis=-3), XLA)


def join_halves(system: Float32[Array, "*S C C"], halves: Float32[Array, "*S 2 H H"]) -> Float32[Array, "*S C C"]:
    """Returns the inverse of ``I + system`` from the inverses of its diagonal halves."""
    H = halves.shape[-1]
    first, second = halves[..., 0, :, :], halves[..., 1, :, :]
    below = -XLA.product(_SPEC, second, XLA.product(_SPEC, system[..., H:, :H], first))
    return jnp.block([[first, jnp.zeros_like(first)], [below, second]])


def _double_blocks(system: Float32[Array, "*S C C"], arithmetic: Arithmetic) -> Float32[Array, "*S C C"]:
    """Inverts ``I + system`` coarsely, from diagonal blocks of size 1 on.

    Once two neighbouring diagonal blocks are inverted, the block below the first is ``-second (system's block) first``;
    no power of the system is formed. All blocks stay in place, a mask picks those below the diagonal: a matrix unit
    gains nothing from smaller products.
    """
    C = system.shape[-1]
    multiply = arithmetic.coarse_product

    def below(size: int) -> Array:
        row, column = (index // size for index in _indices(C))
        return jnp.where((row == column + 1) & (row % 2 == 1), system, 0)

    inverse = _identity(system) - below(1)
    size = 2
    while size < C:
        inverse = inverse - multiply(_SPEC, inverse, multiply(_SPEC, below(size), inverse))
        size *= 2
    return inverse


def _identity(like: Float32[Array, "*S C C"]) -> Float32[Array, "C C"]:
    row, column = _indices(like.shape[-1])
    return (row == column).astype(jnp.float32)


def _indices(C: int) -> tuple[Int32[Array, "C C"], Int32[Array, "C C"]]:
    """Returns the row and the column of every entry, computed: a kernel holds no constant arrays."""
    return lax.broadcasted_iota(jnp.int32, (C, C), 0), lax.broadcasted_iota(jnp.int32, (C, C), 1)


_SPEC = "...CD,...DE->...CE"
