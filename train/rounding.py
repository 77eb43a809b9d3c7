"""Adds updates to parameters so that those held in bfloat16 keep what is smaller than their last digit.

A bfloat16 number has 8 significant bits. An update below 1/512 of it is lost when the sum is rounded to the nearest. At
a learning rate of 1e-5 that is almost every update of a weight above 0.01. Here the sum is rounded up or down at
random, so that the mean over many roundings is the sum itself.

Source: stochastic rounding as in arXiv:2010.06192.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float32, Int, PyTree, UInt16

from qwen35_jax.runs import name_arrays


def apply_updates(params: PyTree[Array], updates: PyTree[Array], *, seed: int, step: Int[Array, ""]) -> PyTree[Array]:
    """Returns ``params + updates``, added in float32 and held in the dtype of each parameter.

    The random bits are a function of the seed, the step and the parameter's name. So neither a resumed run nor another
    mesh changes them.
    """
    # The kind is named, because a user may have set another, which does not give the same bits on every mesh.
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)

    def add(name: str, param: Array, update: Array) -> Array:
        total = param.astype(jnp.float32) + update
        if param.dtype != jnp.bfloat16:
            return total.astype(param.dtype)
        bits = jax.random.bits(jax.random.fold_in(key, zlib.crc32(name.encode())), param.shape, jnp.uint16)
        return round_randomly(total, bits)

    names = jax.tree.unflatten(jax.tree.structure(params), name_arrays(params))
    return jax.tree.map(add, names, params, updates)


def round_randomly(x: Float32[Array, "*L"], bits: UInt16[Array, "*L"]) -> BFloat16[Array, "*L"]:
    """Rounds to one of the two neighbours in bfloat16, to the nearer one with the greater probability.

    Args:
      bits: uniform; what of ``x`` bfloat16 cannot hold, in the same unit, decides against them.
    """
    # The lower half of a float32 is what bfloat16 lacks. It carries over with a probability of its own size.
    whole = jax.lax.bitcast_convert_type(x, jnp.uint32) + bits.astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type(whole & jnp.uint32(0xFFFF0000), jnp.float32)
    # A carry would turn infinity into NaN.
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
