"""The memory of a model: that of every layer, which document each slot holds, and how far each sequence has come.

Letters: ``B`` batch, ``S`` slots, ``T`` tokens of this call.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from qwen35_jax.config import LINEAR, TextConfig
from qwen35_jax.ops.positions import count_positions
from qwen35_jax.state.contiguous import ContiguousKeyValues
from qwen35_jax.state.delta import DeltaState
from qwen35_jax.state.protocol import LayerState, Placement


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecoderState:
    """The memory of a batch of sequences, each of its own length.

    Padding that leads a sequence or lies between its documents takes slots. Padding at the end of a call takes none:
    the next call writes over it.

    Attributes:
      layers: one entry for each layer of the period, stacked over periods.
      lengths: slots in use of each sequence.
      segment_ids: document of each slot, 0 where it is padding or unused.
      last_segment_ids: document that the recurrent states belong to, 0 before the first token.
      next_position: position of the next token of that document.
      is_fresh: whether no sequence holds a token yet. Known when a program is compiled.
    """

    layers: tuple[LayerState, ...]
    lengths: Int[Array, " B"]
    segment_ids: Int[Array, "B S"]
    last_segment_ids: Int[Array, " B"]
    next_position: Int[Array, " B"]
    is_fresh: bool = field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        """Slots of each sequence."""
        return self.segment_ids.shape[1]

    @classmethod
    def empty(cls, config: TextConfig, batch: int, capacity: int, dtype: DTypeLike) -> "DecoderState":
        """Makes the memory of ``batch`` sequences of at most ``capacity`` tokens, keys and values in ``dtype``."""
        return cls(
            layers=tuple(
                DeltaState.empty(config, batch, dtype)
                if kind == LINEAR
                else ContiguousKeyValues.empty(config, batch, capacity, dtype)
                for kind in config.layer_types[: config.period]
            ),
            lengths=jnp.zeros((batch,), jnp.int32),
            segment_ids=jnp.zeros((batch, capacity), jnp.int32),
            last_segment_ids=jnp.zeros((batch,), jnp.int32),
            next_position=jnp.zeros((batch,), jnp.int32),
            is_fresh=True,
        )

    def continued(self, num_tokens: int) -> Int[Array, "B T"]:
        """Returns segment ids of tokens that all go on with the document that each sequence ended in."""
        return jnp.repeat(jnp.maximum(self.last_segment_ids, 1)[:, None], num_tokens, axis=1)

    def positions(self, segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
        """Counts the positions of a call's tokens within their documents."""
        return count_positions(segment_ids, self.last_segment_ids, self.next_position)

    def place(self, segment_ids: Int[Array, "B T"]) -> Placement:
        """Says where the tokens of a call go. The caller keeps ``lengths + T`` within ``capacity``."""
        slots = self.lengths[:, None] + jnp.arange(segment_ids.shape[1])
        sequences = jnp.arange(segment_ids.shape[0])[:, None]
        table = self.segment_ids.at[sequences, slots].set(segment_ids.astype(jnp.int32))
        return Placement(slots, table, self.last_segment_ids, jnp.zeros((), jnp.int32), self.is_fresh)

    def advance(
        self,
        layers: tuple[LayerState, ...],
        segment_ids: Int[Array, "B T"],
        position_ids: Int[Array, "*axes B T"],
        placement: Placement,
    ) -> "DecoderState":
        """Returns the memory after a call whose layers left ``layers``."""
        is_real = segment_ids > 0
        last = jnp.maximum(self.last_segment_ids, segment_ids.max(axis=1))
        newest = position_ids.max(axis=0) if position_ids.ndim == 3 else position_ids
        after = jnp.where((segment_ids == last[:, None]) & is_real, newest + 1, 0).max(axis=1)
        used = jnp.where(is_real, jnp.arange(1, segment_ids.shape[1] + 1), 0).max(axis=1)
        return DecoderState(
            layers=layers,
            lengths=self.lengths + used,
            segment_ids=placement.key_segment_ids,
            last_segment_ids=last,
            next_position=jnp.where(is_real.any(axis=1), after, self.next_position),
            is_fresh=False,
        )

    def resized(self, capacity: int) -> "DecoderState":
        """Returns the same memory with more slots, at the end of each sequence."""
        return DecoderState(
            layers=tuple(layer.resized(capacity) for layer in self.layers),
            lengths=self.lengths,
            segment_ids=jnp.pad(self.segment_ids, [(0, 0), (0, capacity - self.capacity)]),
            last_segment_ids=self.last_segment_ids,
            next_position=self.next_position,
            is_fresh=self.is_fresh,
        )
