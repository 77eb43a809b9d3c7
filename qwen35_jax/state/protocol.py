"""What a mixer may expect of its memory, and where the tokens of a call go in it.

Letters: ``B`` batch, ``T`` tokens of this call, ``S`` slots, ``N`` query heads, ``K`` key heads, ``H`` head width. In
the delta rule ``N`` value heads, ``K`` and ``V`` key and value width.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.ops.gated_delta import DeltaRule


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
    """A memory with room for so many tokens of each sequence, of the layers at one place of the period."""

    def resized(self, capacity: int) -> "LayerState":
        """Returns the same memory with room for ``capacity`` tokens of each sequence."""
        ...


@runtime_checkable
class KeyValues(Protocol):
    """The memory of attention layers, in any storage, stacked over periods."""

    def attend(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        segment_ids: Int[Array, "B T"],
        placement: Any,
    ) -> tuple[Float[Array, "B T N H"], "KeyValues"]:
        """Writes the keys and values of a call's tokens, and lets its queries attend to all of their document.

        Returns:
          The attention's outputs, and the memory after the call.
        """
        ...


@runtime_checkable
class DeltaMemory(Protocol):
    """The memory of DeltaNet layers, stacked over periods. Other letters: ``W`` inputs looked back, ``C`` channels."""

    def window(self, placement: Any) -> Float[Array, "B W C"]:
        """Returns the convolution's last inputs before this call, of one layer."""
        ...

    def recur(
        self,
        q: Float[Array, "B T N K"],
        k: Float[Array, "B T N K"],
        v: Float[Array, "B T N V"],
        log_decay: Float32[Array, "B T N"],
        beta: Float32[Array, "B T N"],
        *,
        projected: Float[Array, "B T C"],
        window: Float[Array, "B W C"],
        segment_ids: Int[Array, "B T"],
        placement: Any,
        delta_rule: DeltaRule,
    ) -> tuple[Float[Array, "B T N V"], "DeltaMemory"]:
        """Runs the delta rule over a call's tokens, on top of one layer's state.

        Args:
          projected: the convolution's inputs of this call.
          window: its last inputs after this call.

        Returns:
          The outputs, and the memory after the call.
        """
        ...


LayerMemory = KeyValues | DeltaMemory
