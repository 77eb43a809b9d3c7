"""What an engine remembers of all its slots, and how one slot takes over what another has read.

A snapshot is taken at the end of a chunk of a prompt. A fork is a slot that begins with it: it shares the full pages
and gets its own copy of the states and of the last page.

Letters: ``B`` slots, ``V`` vocabulary.
"""

import dataclasses
import functools
from dataclasses import dataclass

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from qwen35_jax.config import TextConfig
from qwen35_jax.sharding import num_shards
from qwen35_jax.state import DeltaState, PagedKeyValues, SlotDelta, empty_layers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """What the model remembers of all slots: its layers, and the MTP head's keys and values if it drafts."""

    layers: tuple[SlotDelta | PagedKeyValues, ...]
    mtp: PagedKeyValues | None

    @classmethod
    def empty(
        cls, config: TextConfig, *, slots: int, num_drafts: int, num_pages: int, page_size: int, dtype: DTypeLike
    ) -> "Memory":
        """Makes the memory of an engine; ``num_pages`` over all data shards, each with its page 0."""
        heads = max(config.num_key_value_heads, num_shards("heads"))
        layers = empty_layers(
            config, slots=slots, window=num_drafts + 1, num_pages=num_pages, page_size=page_size, dtype=dtype,
            num_heads=heads,
        )  # fmt: skip
        mtp = None
        if num_drafts:
            mtp = PagedKeyValues.empty(config, num_pages, page_size, dtype, num_layers=1, num_heads=heads)
        return cls(layers, mtp).split()

    def split(self) -> "Memory":
        """Splits it over the devices of the mesh."""
        return Memory(tuple(x.split() for x in self.layers), None if self.mtp is None else self.mtp.split())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Snapshot:
    """A slot at the end of a chunk of its prompt, its pages apart.

    Attributes:
      states: states of its DeltaNet layers, one entry for each such layer of the period.
      seen: which tokens it holds, as in ``Slots``.
    """

    states: tuple[DeltaState, ...]
    seen: Int[Array, "1 V"]


@jax.jit
def take_snapshot(memory: Memory, seen: Int[Array, "B V"], slot: Int[Array, " 1"]) -> Snapshot:
    """Copies what a slot knows outside its pages."""
    states = tuple(x.take(slot) for x in memory.layers if isinstance(x, SlotDelta))
    return Snapshot(states, seen[slot])


@functools.partial(jax.jit, donate_argnames=("memory", "seen"))
def fork(
    memory: Memory,
    seen: Int[Array, "B V"],
    snapshot: Snapshot,
    slot: Int[Array, " 1"],
    shard: Int[Array, ""] | int,
    source: Int[Array, ""] | int,
    target: Int[Array, ""] | int,
) -> tuple[Memory, Int[Array, "B V"]]:
    """Lets a slot begin with a snapshot.

    Args:
      shard: the data shard whose pages are meant.
      source, target: the page that both hold in part, and the slot's own copy of it; 0 and 0 for none.
    """
    states = iter(snapshot.states)
    layers = tuple(
        x.put(slot, next(states)) if isinstance(x, SlotDelta) else x.copy_page(shard, source, target)
        for x in memory.layers
    )
    mtp = None if memory.mtp is None else memory.mtp.copy_page(shard, source, target)
    return dataclasses.replace(memory, layers=layers, mtp=mtp).split(), seen.at[slot].set(snapshot.seen)
