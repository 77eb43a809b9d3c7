"""Matrix products of the delta rule: what precision each has, and how the TPU compiler is kept from slowing them."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float32


def product(
    spec: str, a: Array, b: Array, *, rounded_to: DTypeLike = jnp.float32
) -> Float32[Array, "..."]:  # fmt: skip
    """Multiplies as ``jnp.einsum`` does, into float32.

    Two bfloat16 operands take one pass of a TPU's matrix unit, which is exact. All else has the highest precision (six
    passes; no TF32 on a GPU), unless the caller says that the result is only ``rounded_to`` bfloat16: then three
    passes, whose error of 2^-17 is far below that of the rounding.

    The barriers keep elementwise work out of the product. Merged into it, a TPU repeats it for each tile, relayouts of
    per-token factors included: without them forward and backward take 1.2 times as long on v5e.
    """
    if a.dtype == b.dtype == jnp.bfloat16:
        precision = lax.Precision.DEFAULT
    else:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        precision = lax.Precision.HIGH if rounded_to == jnp.bfloat16 else lax.Precision.HIGHEST
    a, b = lax.optimization_barrier((a, b))
    result = jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)
    return lax.optimization_barrier(result)
