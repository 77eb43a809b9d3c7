"""How every parameter is made: shape, logical axes, initial value, and the stack it belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from qwen35_jax.sharding import Axes

# The reference draws A from (0, 16); the lower end keeps its logarithm finite.
A_RANGE = (0.01, 16.0)


@dataclass(frozen=True)
class Parameters:
    """Makes the parameters of layers that are stacked ``stack`` times (``None``: not stacked).

    A stacked layer holds the weights of all its repetitions along a first axis; ``jax.lax.scan`` hands it one
    layer at a time, so its code is written for a single layer.

    Source of the initial values: ``Qwen3_5PreTrainedModel._init_weights`` in transformers.
    """

    rngs: nnx.Rngs
    dtype: DTypeLike
    initializer_range: float
    stack: int | None = None

    def normal(self, shape: Sequence[int], axes: Axes) -> nnx.Param:
        """Draws from a normal distribution of width ``initializer_range``."""
        shape, axes = self._stacked(shape, axes)
        value = jax.random.normal(self.rngs.params(), shape, jnp.float32) * self.initializer_range
        return nnx.Param(value.astype(self.dtype), logical_axes=axes)

    def constant(self, shape: Sequence[int], axes: Axes, *, fill: float, dtype: DTypeLike | None = None) -> nnx.Param:
        """Fills with one value; ``dtype`` overrides the storage dtype."""
        shape, axes = self._stacked(shape, axes)
        return nnx.Param(jnp.full(shape, fill, dtype or self.dtype), logical_axes=axes)

    def log_uniform(self, shape: Sequence[int], axes: Axes) -> nnx.Param:
        """Draws the logarithm of a uniform value in ``A_RANGE``, in float32."""
        shape, axes = self._stacked(shape, axes)
        value = jax.random.uniform(self.rngs.params(), shape, jnp.float32, *A_RANGE)
        return nnx.Param(jnp.log(value), logical_axes=axes)

    def _stacked(self, shape, axes):
        if self.stack is None:
            return tuple(shape), tuple(axes)
        return (self.stack, *shape), (None, *axes)
