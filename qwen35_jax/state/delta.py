"""The memory of DeltaNet layers.

Letters: ``G`` periods, ``B`` batch, ``W`` conv window (taps less one), ``C`` conv channels, ``N`` value heads, ``K``
and ``V`` key and value width of a head.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.config import TextConfig
from qwen35_jax.ops.gated_delta import DeltaRule
from qwen35_jax.ops.gated_delta.sharded import gated_delta_sharded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeltaState:
    """Last inputs of the convolution and float32 recurrent state of the DeltaNet layers at one place of the period."""

    inputs: Float[Array, "G B W C"]
    recurrent: Float32[Array, "G B N K V"]

    @classmethod
    def empty(cls, config: TextConfig, batch: int, dtype: DTypeLike) -> "DeltaState":
        """Makes the memory of ``batch`` sequences before their first token."""
        G, heads = config.num_periods, config.linear_num_value_heads
        window = (G, batch, config.linear_conv_kernel_dim - 1, config.conv_dim)
        recurrent = (G, batch, heads, config.linear_key_head_dim, config.linear_value_head_dim)
        return cls(jnp.zeros(window, dtype), jnp.zeros(recurrent, jnp.float32))

    def window(self, placement: Any) -> Float[Array, "B W C"]:
        """See ``DeltaMemory.window``."""
        return self.inputs[placement.layer]

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
    ) -> tuple[Float[Array, "B T N V"], "DeltaState"]:
        """See ``DeltaMemory.recur``; the convolution's inputs are all in its window."""
        layer = placement.layer
        out, recurrent = gated_delta_sharded(
            q, k, v, log_decay, beta, self.recurrent[layer], segment_ids, placement.state_segment_ids,
            delta_rule=delta_rule,
        )  # fmt: skip
        assert recurrent is not None
        inputs = self.inputs.at[layer].set(window.astype(self.inputs.dtype))
        return out, DeltaState(inputs, self.recurrent.at[layer].set(recurrent))

    def resized(self, capacity: int) -> "DeltaState":
        """See ``LayerState.resized``. The size does not depend on the number of tokens."""
        return self
