"""What a mixer may expect of its memory, and where the tokens of a call go in it.

Letters: ``B`` batch, ``T`` tokens of this call, ``S`` slots, ``N`` query heads, ``K`` key heads, ``H`` head width.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Placement:
    """Where the tokens of one call go in the memory; the same for every layer but for ``layer``.

    Attributes:
      slots: slot of each token.
      key_segment_ids: document of each slot, those of this call included; 0 where it is padding or unused.
      state_segment_ids: document that the recurrent states belong to, 0 before the first token.
      layer: index of the layer in its stack over periods.
      is_fresh: whether no sequence held a token before this call. Known when the program is compiled.
    """

    slots: Int[Array, "B T"]
    key_segment_ids: Int[Array, "B S"]
    state_segment_ids: Int[Array, " B"]
    layer: Int[Array, ""]
    is_fresh: bool = field(metadata={"static": True})


@runtime_checkable
class LayerState(Protocol):
    """The memory of the layers at one place of the period, stacked over periods."""

    def resized(self, capacity: int) -> "LayerState":
        """Returns the same memory with room for ``capacity`` tokens of each sequence."""
        ...


@runtime_checkable
class KeyValues(LayerState, Protocol):
    """The memory of attention layers, in any storage."""

    def attend(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        segment_ids: Int[Array, "B T"],
        placement: Placement,
    ) -> tuple[Float[Array, "B T N H"], "KeyValues"]:
        """Writes the keys and values of a call's tokens, and lets its queries attend to all of their document.

        Returns:
          The attention's outputs, and the memory after the call.
        """
        ...
