"""What a layer must know about the tokens it is given, besides their vectors.

Letters: ``B`` batch, ``T`` tokens of this call, ``S`` key slots, ``R`` half the rotary width.
"""

import dataclasses
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """Documents, rotary angles and dropout of one call; the same for every layer.

    Attributes:
      cos, sin: float32, from ``ops.rotary``.
      segment_ids: document of each token, 0 for padding; ``None`` when every row is one document without padding.
      key_segment_ids: the same for every slot of the key cache; ``None`` without a cache.
      state_segment_ids: document that a recurrent state or conv window from the cache belongs to.
      length: slots of the key cache in use before this call.
      dropout_key: randomness for adapter dropout; ``None`` turns it off.
    """

    cos: Float[Array, "#B T R"]
    sin: Float[Array, "#B T R"]
    segment_ids: Int[Array, "B T"] | None = None
    key_segment_ids: Int[Array, "B S"] | None = None
    state_segment_ids: Int[Array, " B"] | None = None
    length: Int[Array, ""] | None = None
    dropout_key: PRNGKeyArray | None = None

    def for_layer(self, key: PRNGKeyArray | None, index: int) -> "Tokens":
        """Returns the same tokens with the dropout randomness of one layer."""
        if key is None:
            return self
        return dataclasses.replace(self, dropout_key=jax.random.fold_in(key, index))
