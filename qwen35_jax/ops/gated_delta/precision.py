"""The precision of the delta rule's matrix products, under XLA and inside a kernel."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float32


class Arithmetic(NamedTuple):
    """How the work of a chunk is handed to a compiler; ``XLA`` and ``KERNEL`` are the two ways.

    ``product(spec, a, b, rounded_to=float32)`` multiplies as ``jnp.einsum`` does, into float32. Two bfloat16 operands
    take one pass of a TPU's matrix unit, which is exact. All else is right to float32, in six passes for two float32
    operands and three for one, unless the caller says that the result is only ``rounded_to`` bfloat16: then half of
    that, whose error of 2^-17 is far below that of the rounding.

    ``coarse_product(spec, a, b)`` is one pass, for operands that may be rounded to bfloat16.

    ``materialize(xs)`` returns the same, computed before what uses it.
    """

    product: Callable[..., Float32[Array, "..."]]
    coarse_product: Callable[..., Float32[Array, "..."]]
    materialize: Callable


def _xla_product(spec: str, a: Array, b: Array, *, rounded_to: DTypeLike = jnp.float32) -> Float32[Array, "..."]:
    """Multiplies without TF32 on a GPU."""
    if a.dtype == b.dtype == jnp.bfloat16:
        return _multiply(spec, a, b, lax.Precision.DEFAULT)
    return _multiply(spec, a, b, lax.Precision.HIGH if rounded_to == jnp.bfloat16 else lax.Precision.HIGHEST)


def _xla_coarse_product(spec: str, a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Multiplies as fast as it can: operands rounded to bfloat16 on a TPU, TF32 on a GPU, float32 on a CPU."""
    return _multiply(spec, a, b, lax.Precision.DEFAULT)


def _multiply(spec: str, a: Array, b: Array, precision: lax.Precision) -> Float32[Array, "..."]:
    # The barriers keep elementwise work out of the product: a TPU would repeat it for each tile, relayouts of per-token
    # factors included. Only the conversion from bfloat16 stays within, where the compiler sees that it spares passes.
    a, b = lax.optimization_barrier((a, b))
    if not a.dtype == b.dtype == jnp.bfloat16:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return lax.optimization_barrier(jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32))


def _kernel_product(spec: str, a: Array, b: Array, *, rounded_to: DTypeLike = jnp.float32) -> Float32[Array, "..."]:
    return _multiply_parts(spec, a, b, 2 if rounded_to == jnp.bfloat16 else 3)


def _kernel_coarse_product(spec: str, a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    return _multiply_parts(spec, a, b, 1)


def _multiply_parts(spec: str, a: Array, b: Array, num_parts: int) -> Float32[Array, "..."]:
    """Adds up the products of bfloat16 parts, the smallest first; those beyond ``num_parts`` orders are left out."""
    a_parts, b_parts = _parts(a, num_parts), _parts(b, num_parts)
    orders = [(i, j) for i in range(len(a_parts)) for j in range(len(b_parts)) if i + j < num_parts]
    total = 0.0
    for i, j in sorted(orders, key=sum, reverse=True):
        total += _one_pass(spec, a_parts[i], b_parts[j])
    assert not isinstance(total, float), "there is at least one product"
    return total


def _parts(x: Array, num_parts: int) -> list[Array]:
    """Cuts float32 numbers into bfloat16 ones of 8 bits each that add up to them; bfloat16 is one part."""
    if x.dtype == jnp.bfloat16:
        return [x]
    parts = []
    for _ in range(num_parts):
        parts.append(x.astype(jnp.bfloat16))
        x = x - parts[-1].astype(jnp.float32)
    return parts


def _one_pass(spec: str, a: Array, b: Array) -> Float32[Array, "..."]:
    """Multiplies matrices with leading axes ``...``; a kernel's compiler knows ``dot_general`` but not ``einsum``."""
    a_axes, b_axes = spec.split("->")[0].replace("...", "").split(",")
    (summed,) = set(a_axes) & set(b_axes)
    leading = tuple(range(a.ndim - 2))
    a_axis, b_axis = (len(leading) + axes.index(summed) for axes in (a_axes, b_axes))
    axes = (((a_axis,), (b_axis,)), (leading, leading))
    return lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


XLA = Arithmetic(_xla_product, _xla_coarse_product, lax.optimization_barrier)
KERNEL = Arithmetic(_kernel_product, _kernel_coarse_product, lambda xs: xs)
