"""The memory of DeltaNet layers.

Letters: ``G`` periods, ``B`` batch, ``W`` conv window (taps less one), ``C`` conv channels, ``N`` value heads, ``K``
and ``V`` key and value width of a head.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.config import TextConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeltaState:
    """Conv window and float32 recurrent state of the DeltaNet layers at one place of the period."""

    window: Float[Array, "G B W C"]
    recurrent: Float32[Array, "G B N K V"]

    @classmethod
    def empty(cls, config: TextConfig, batch: int, dtype: DTypeLike) -> "DeltaState":
        """Makes the memory of ``batch`` sequences before their first token."""
        G, heads = config.num_periods, config.linear_num_value_heads
        window = (G, batch, config.linear_conv_kernel_dim - 1, config.conv_dim)
        recurrent = (G, batch, heads, config.linear_key_head_dim, config.linear_value_head_dim)
        return cls(jnp.zeros(window, dtype), jnp.zeros(recurrent, jnp.float32))

    def read(self, layer: Int[Array, ""]) -> tuple[Float[Array, "B W C"], Float32[Array, "B N K V"]]:
        """Returns the window and the state of one layer."""
        return self.window[layer], self.recurrent[layer]

    def write(
        self, layer: Int[Array, ""], window: Float[Array, "B W C"], recurrent: Float32[Array, "B N K V"]
    ) -> "DeltaState":
        """Returns the memory with the window and the state of one layer replaced."""
        return DeltaState(
            self.window.at[layer].set(window.astype(self.window.dtype)), self.recurrent.at[layer].set(recurrent)
        )

    def resized(self, capacity: int) -> "DeltaState":
        """See ``LayerState.resized``. The size does not depend on the number of tokens."""
        return self
