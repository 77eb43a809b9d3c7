"""Reductions over a vocabulary that is split over the devices of a mesh.

Letters: B batch, C positions in a chunk, V vocabulary (of this shard, in the shapes), K token ids at a position.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from qwen35_jax.sharding import gather_over, sum_over


class VocabularyShard(NamedTuple):
    """The entries of the vocabulary that a device has logits for, and how to reduce over all shards."""

    first: Int[Array, ""] | int
    axes: tuple[str, ...]

    def ids(self, logits: Float[Array, "B C V"]) -> Int[Array, "B C V"]:
        """Returns the token id of each entry."""
        return self.first + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)

    def is_id(self, ids: Int[Array, "B C"], logits: Float[Array, "B C V"]) -> Bool[Array, "B C V"]:
        """Says which entries belong to the token id of their position; none does where another shard has it."""
        # Compared, not scattered: elementwise work that fuses.
        return self.ids(logits) == ids[..., None]

    def sum(self, values: PyTree[Float[Array, "B C V"]]) -> PyTree[Float[Array, "B C"]]:
        """Returns the sum over the whole vocabulary, of one array or of each array of a tree."""
        return sum_over(self.axes, jax.tree.map(lambda x: jnp.sum(x, axis=-1), values))

    def max(self, values: Float[Array, "B C V"]) -> Float[Array, "B C"]:
        """Returns the largest value of the whole vocabulary."""
        largest = jnp.max(values, axis=-1)
        return jax.lax.pmax(largest, self.axes) if self.axes else largest

    def logsumexp(
        self, logits: Float[Array, "B C V"], largest: Float[Array, "B C"] | None = None
    ) -> Float[Array, "B C"]:
        """Returns the logarithm of the sum of exponentials over the whole vocabulary, -inf if all logits are -inf."""
        largest = self.max(logits) if largest is None else largest
        largest = jnp.where(jnp.isfinite(largest), largest, 0)
        return jnp.log(self.sum(jnp.exp(logits - largest[..., None]))) + largest

    def take(self, values: Float[Array, "B C V"], ids: Int[Array, "B C K"]) -> Float[Array, "B C K"]:
        """Returns the values at token ids of the whole vocabulary, 0 for an id outside it."""
        entries = ids - self.first
        inside = (entries >= 0) & (entries < values.shape[-1])
        found = jnp.take_along_axis(values, jnp.where(inside, entries, 0), axis=-1)
        return sum_over(self.axes, jnp.where(inside, found, 0))

    def top_k(self, values: Float[Array, "B C V"], k: int) -> tuple[Float[Array, "B C K"], Int[Array, "B C K"]]:
        """Returns the ``k`` largest values of the whole vocabulary in falling order, and their token ids."""
        largest, entries = jax.lax.top_k(values, min(k, values.shape[-1]))
        largest, ids = (gather_over(self.axes, x, axis=2) for x in (largest, entries + self.first))
        largest, places = jax.lax.top_k(largest, k)
        return largest, jnp.take_along_axis(ids, places, axis=-1)
