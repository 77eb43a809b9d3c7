"""Keys and values in one piece for each sequence.

Letters: ``G`` periods, ``B`` batch, ``T`` tokens of this call, ``S`` slots, ``N`` query heads, ``K`` key heads, ``H``
head width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from qwen35_jax.config import TextConfig
from qwen35_jax.ops.attention.sharded import attention_sharded, attention_to_slots_sharded
from qwen35_jax.sharding import over_mesh
from qwen35_jax.state.protocol import Placement

_HEADS = ("batch", None, "heads", None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ContiguousKeyValues:
    """Keys and values of the attention layers at one place of the period, ``S`` slots for every sequence."""

    k: Float[Array, "G B S K H"]
    v: Float[Array, "G B S K H"]

    @classmethod
    def empty(cls, config: TextConfig, batch: int, capacity: int, dtype: DTypeLike) -> "ContiguousKeyValues":
        """Makes room for ``capacity`` tokens of each of ``batch`` sequences."""
        shape = (config.num_periods, batch, capacity, config.num_key_value_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def attend(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        segment_ids: Int[Array, "B T"],
        placement: Placement,
    ) -> tuple[Float[Array, "B T N H"], "ContiguousKeyValues"]:
        """See ``KeyValues.attend``. The tokens of a fresh memory's first call attend to each other as in training."""
        written = ContiguousKeyValues(_write(self.k, k, placement), _write(self.v, v, placement))
        if placement.is_fresh:
            return attention_sharded(q, k, v, segment_ids), written
        out = attention_to_slots_sharded(
            q, written.k[placement.layer], written.v[placement.layer],
            query_slots=placement.slots, segment_ids=segment_ids, key_segment_ids=placement.key_segment_ids,
        )  # fmt: skip
        return out, written

    def resized(self, capacity: int) -> "ContiguousKeyValues":
        """See ``LayerState.resized``; new slots are at the end."""
        more = [(0, 0), (0, 0), (0, capacity - self.k.shape[2]), (0, 0), (0, 0)]
        return ContiguousKeyValues(jnp.pad(self.k, more), jnp.pad(self.v, more))


def _write(
    stack: Float[Array, "G B S K H"], new: Float[Array, "B T K H"], placement: Placement
) -> Float[Array, "G B S K H"]:
    """Writes the tokens of a call into one layer's entry, in place: a sequence's tokens lie side by side."""

    def local(stack, new, first, layer):
        if placement.is_fresh:
            return jax.lax.dynamic_update_slice(stack, new[None], (layer, 0, 0, 0, 0))
        write = jax.vmap(
            lambda entries, new, first: jax.lax.dynamic_update_slice(entries, new[None], (layer, first, 0, 0)),
            in_axes=(1, 0, 0),
            out_axes=1,
        )
        return write(stack, new, first)

    axes = ((None, *_HEADS), _HEADS, ("batch",), ())
    first, layer = placement.slots[:, 0], placement.layer
    return over_mesh(local, stack, new.astype(stack.dtype), first, layer, in_axes=axes, out_axes=axes[0])
