"""The linear layer, with room for a low-rank adapter.

Letters: ``I`` input width, ``O`` output width; the leading axes of the input are free.
"""

import zlib

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.ops.projection import project
from qwen35_jax.sharding import Axis


class Linear(nnx.Module):
    """Computes ``x W``, plus a bias if it has one, plus ``scale * dropout(x) A B`` where an adapter was added.

    The weight is stored as [I, O], transposed from the checkpoint, and used in the dtype of the input.
    ``qwen35_jax.lora`` sets the ``lora_*`` attributes.
    """

    def __init__(
        self, name: str, in_dim: int, out_dim: int, axes: tuple[Axis, Axis], *, make: Parameters, bias: bool = False
    ):
        self.name = name
        self.weight = make.normal((in_dim, out_dim), axes)
        self.bias = nnx.data(make.constant((out_dim,), axes[1:], fill=0.0) if bias else None)
        self.lora_a: nnx.LoRAParam | None = nnx.data(None)
        self.lora_b: nnx.LoRAParam | None = nnx.data(None)
        self.lora_scale = 0.0
        self.lora_dropout = 0.0

    def __call__(self, x: Float[Array, "*L I"], dropout_key: PRNGKeyArray | None = None) -> Float[Array, "*L O"]:
        y = project(x, self.weight[...].astype(x.dtype))
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.lora_a is None or self.lora_b is None:
            return y
        if dropout_key is not None and self.lora_dropout > 0:
            key = jax.random.fold_in(dropout_key, zlib.crc32(self.name.encode()))
            keep = jax.random.bernoulli(key, 1 - self.lora_dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.lora_dropout), 0)
        low_rank = project(x, self.lora_a[...].astype(x.dtype))
        return y + project(low_rank, self.lora_b[...].astype(x.dtype)) * self.lora_scale
