"""What the model remembers of the tokens it has seen: keys and values, recurrent states, and where each row stands.

Letters: ``G`` periods, ``B`` batch, ``S`` slots, ``K`` key heads, ``H`` head width; of the delta rule ``N`` value
heads, ``K`` and ``V`` key and value width; ``W`` conv window (taps less one), ``C`` conv channels.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from qwen35_jax.config import LINEAR, TextConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of the attention layers at one place of the period."""

    k: Float[Array, "G B S K H"]
    v: Float[Array, "G B S K H"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeltaState:
    """Conv window and float32 recurrent state of the DeltaNet layers at one place of the period."""

    conv: Float[Array, "G B W C"]
    state: Float[Array, "G B N K V"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The memory of a batch of rows that advance together.

    Attributes:
      layers: one entry for each layer of the period, stacked over periods.
      length: slots in use, the same for all rows; shorter rows are padded on the left.
      segment_ids: document of each slot, 0 where it is padding or unused.
      last_segment_ids: document that the recurrent states belong to, 0 before the first token.
      next_position: position of the next token of that document.
    """

    layers: tuple[KVCache | DeltaState, ...]
    length: Int[Array, ""]
    segment_ids: Int[Array, "B S"]
    last_segment_ids: Int[Array, " B"]
    next_position: Int[Array, " B"]

    @property
    def capacity(self) -> int:
        return self.segment_ids.shape[1]

    @classmethod
    def empty(cls, cfg: TextConfig, batch: int, capacity: int, dtype: DTypeLike) -> "Cache":
        """Makes the memory of ``batch`` rows of at most ``capacity`` tokens, keys and values in ``dtype``."""
        G, heads = cfg.num_periods, cfg.linear_num_value_heads
        keys = (G, batch, capacity, cfg.num_key_value_heads, cfg.head_dim)
        window = (G, batch, cfg.linear_conv_kernel_dim - 1, cfg.conv_dim)
        state = (G, batch, heads, cfg.linear_key_head_dim, cfg.linear_value_head_dim)
        return cls(
            layers=tuple(
                DeltaState(jnp.zeros(window, dtype), jnp.zeros(state, jnp.float32))
                if kind == LINEAR
                else KVCache(jnp.zeros(keys, dtype), jnp.zeros(keys, dtype))
                for kind in cfg.layer_types[: cfg.period]
            ),
            length=jnp.zeros((), jnp.int32),
            segment_ids=jnp.zeros((batch, capacity), jnp.int32),
            last_segment_ids=jnp.zeros((batch,), jnp.int32),
            next_position=jnp.zeros((batch,), jnp.int32),
        )

    def advance(
        self,
        layers: tuple[KVCache | DeltaState, ...],
        segment_ids: Int[Array, "B T"],
        all_segment_ids: Int[Array, "B S"],
        position_ids: Int[Array, "*axes B T"],
    ) -> "Cache":
        """Returns the memory after a call: ``layers`` hold its new states and the keys and values of its tokens."""
        T = segment_ids.shape[1]
        last = jnp.maximum(self.last_segment_ids, segment_ids.max(axis=1))
        newest = position_ids.max(axis=0) if position_ids.ndim == 3 else position_ids
        after = jnp.where((segment_ids == last[:, None]) & (segment_ids > 0), newest + 1, 0).max(axis=1)
        written = tuple(
            new if isinstance(new, DeltaState) else _append(old, new, self.length)
            for old, new in zip(self.layers, layers, strict=True)
        )
        return Cache(
            layers=written,
            length=self.length + T,
            segment_ids=all_segment_ids,
            last_segment_ids=last,
            next_position=jnp.where(segment_ids.max(axis=1) > 0, after, self.next_position),
        )


def _append(cache: KVCache, new: KVCache, length: Int[Array, ""]) -> KVCache:
    start = (0, 0, length, 0, 0)
    return KVCache(
        jax.lax.dynamic_update_slice(cache.k, new.k.astype(cache.k.dtype), start),
        jax.lax.dynamic_update_slice(cache.v, new.v.astype(cache.v.dtype), start),
    )
