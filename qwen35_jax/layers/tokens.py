"""What a layer must know about the tokens it is given, besides their vectors.

Letters: ``B`` batch, ``T`` tokens of this call, ``R`` half the rotary width.
"""

import dataclasses
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, Int

from qwen35_jax.state import PagedPlacement, Placement


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """Documents and rotary angles of one call.

    Attributes:
      cos, sin: float32, from ``ops.rotary``.
      segment_ids: document of each token, 0 for padding; ``None`` when every sequence is one document without padding.
      placement: where the tokens go in the memory; ``None`` without one.
    """

    cos: Float[Array, "#B T R"]
    sin: Float[Array, "#B T R"]
    segment_ids: Int[Array, "B T"] | None = None
    placement: Placement | PagedPlacement | None = None

    def at_layer(self, layer: Int[Array, ""] | None) -> "Tokens":
        """Returns the same tokens for the layers at one index of their stacks; None without a memory."""
        if self.placement is None:
            return self
        assert layer is not None
        return dataclasses.replace(self, placement=dataclasses.replace(self.placement, layer=layer))
