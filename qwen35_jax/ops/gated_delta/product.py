"""Matrix products of the delta rule: what precision each has, and how the TPU compiler is kept from slowing them."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float32


def product(spec: str, a: Array, b: Array, *, rounded_to: DTypeLike = jnp.float32) -> Float32[Array, "..."]:
    """Multiplies as ``jnp.einsum`` does, into float32.

    Two bfloat16 operands take one pass of a TPU's matrix unit, which is exact. All else has the highest precision (no
    TF32 on a GPU), six passes for two float32 operands and three for one, unless the caller says that the result is
    only ``rounded_to`` bfloat16: then half of that, whose error of 2^-17 is far below that of the rounding.
    """
    if a.dtype == b.dtype == jnp.bfloat16:
        return _multiply(spec, a, b, lax.Precision.DEFAULT)
    return _multiply(spec, a, b, lax.Precision.HIGH if rounded_to == jnp.bfloat16 else lax.Precision.HIGHEST)


def coarse_product(spec: str, a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Multiplies as ``jnp.einsum`` does, in what is fastest: operands rounded to bfloat16 on a TPU, TF32 on a GPU."""
    return _multiply(spec, a, b, lax.Precision.DEFAULT)


def _multiply(spec: str, a: Array, b: Array, precision: lax.Precision) -> Float32[Array, "..."]:
    # The barriers keep elementwise work out of the product: a TPU would repeat it for each tile, relayouts of per-token
    # factors included. Only the conversion from bfloat16 stays within, where the compiler sees that it spares passes.
    a, b = lax.optimization_barrier((a, b))
    if not a.dtype == b.dtype == jnp.bfloat16:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return lax.optimization_barrier(jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32))
