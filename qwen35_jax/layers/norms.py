"""The norms of Qwen3.5, computed in float32: two of the decoder, one of the vision tower.

Letters: ``D`` normalised width.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.layers.recompute import recomputed


class RMSNorm(nnx.Module):
    """Zero-centred RMS norm: ``x / rms(x) * (1 + w)``; ``w`` starts at 0.

    Source: ``Qwen3_5RMSNorm`` in transformers.
    """

    def __init__(self, dim: int, eps: float, *, make: Parameters):
        self.eps = eps
        self.weight = make.constant((dim,), ("norm",), fill=0.0)

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        return _norm(x, self.weight[...], self.eps)


class GatedRMSNorm(nnx.Module):
    """RMS norm followed by a gate: ``w * x / rms(x) * silu(z)``; ``w`` starts at 1 and is always float32.

    Source: ``Qwen3_5RMSNormGated`` in transformers; the product with ``w`` stays in float32 here.
    """

    def __init__(self, dim: int, eps: float, *, make: Parameters):
        self.eps = eps
        self.weight = make.constant((dim,), ("norm",), fill=1.0, dtype=jnp.float32)

    def __call__(self, x: Float[Array, "*L D"], z: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        return _gated_norm(x, z, self.weight[...], self.eps)


class LayerNorm(nnx.Module):
    """``(x - mean(x)) / std(x) * w + b``; ``w`` starts at 1, ``b`` at 0. Source: ``LayerNorm`` in torch."""

    def __init__(self, dim: int, eps: float, *, make: Parameters):
        self.eps = eps
        self.weight = make.constant((dim,), ("norm",), fill=1.0)
        self.bias = make.constant((dim,), ("norm",), fill=0.0)

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        return _layer_norm(x, self.weight[...], self.bias[...], self.eps)


@partial(recomputed, static_argnums=2)
def _norm(x: Float[Array, "*L D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*L D"]:
    return (_unit_rms(x, eps) * (1 + weight.astype(jnp.float32))).astype(x.dtype)


@partial(recomputed, static_argnums=3)
def _gated_norm(
    x: Float[Array, "*L D"], z: Float[Array, "*L D"], weight: Float[Array, " D"], eps: float
) -> Float[Array, "*L D"]:
    return (weight * _unit_rms(x, eps) * jax.nn.silu(z.astype(jnp.float32))).astype(x.dtype)


@partial(recomputed, static_argnums=3)
def _layer_norm(
    x: Float[Array, "*L D"], weight: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*L D"]:
    centred = x.astype(jnp.float32)
    centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return (centred * scale * weight.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def _unit_rms(x: Float[Array, "*L D"], eps: float) -> Float[Array, "*L D"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
