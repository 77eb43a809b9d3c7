"""Gated attention: grouped queries, normalised queries and keys, and a sigmoid gate on the output.

Letters: ``B`` batch, ``T`` tokens of this call, ``D`` model width, ``N`` query heads, ``K`` key
heads, ``H`` head width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from qwen35_jax.config import TextConfig
from qwen35_jax.layers.linear import Linear
from qwen35_jax.layers.norms import RMSNorm
from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.layers.recompute import recomputed
from qwen35_jax.layers.tokens import Tokens
from qwen35_jax.ops.attention.sharded import attention_sharded
from qwen35_jax.ops.rotary import apply_rotary
from qwen35_jax.state import KeyValues


class GatedAttention(nnx.Module):
    """Causal attention within documents; ``q_proj`` computes, for each head, its query and then its gate.

    Source: ``Qwen3_5Attention`` in transformers.
    """

    def __init__(self, config: TextConfig, *, make: Parameters):
        dim, width = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = width
        self.q_proj = Linear("q_proj", dim, heads * width * 2, ("embed", ("heads", heads)), make=make)
        self.k_proj = Linear("k_proj", dim, kv_heads * width, ("embed", ("heads", kv_heads)), make=make)
        self.v_proj = Linear("v_proj", dim, kv_heads * width, ("embed", ("heads", kv_heads)), make=make)
        self.o_proj = Linear("o_proj", heads * width, dim, (("heads", heads), "embed"), make=make)
        self.q_norm = RMSNorm(width, config.rms_norm_eps, make=make)
        self.k_norm = RMSNorm(width, config.rms_norm_eps, make=make)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        tokens: Tokens,
        state: KeyValues | None = None,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], KeyValues | None]:
        """Attends to the tokens of this call and, with a memory, to those before. Returns the memory after the call."""
        B, T = x.shape[:2]
        q, gate = jnp.split(self.q_proj(x, dropout_key).reshape(B, T, -1, 2 * self.head_dim), 2, axis=-1)
        k, v = (project(x, dropout_key).reshape(B, T, -1, self.head_dim) for project in (self.k_proj, self.v_proj))
        q = apply_rotary(self.q_norm(q), tokens.cos, tokens.sin)
        k = apply_rotary(self.k_norm(k), tokens.cos, tokens.sin)
        if state is None:
            out = attention_sharded(q, k, v, tokens.segment_ids)
        else:
            assert tokens.segment_ids is not None and tokens.placement is not None
            out, state = state.attend(q, k, v, tokens.segment_ids, tokens.placement)
        return self.o_proj(_gated(out, gate).reshape(B, T, -1), dropout_key), state


@recomputed
def _gated(out: Float[Array, "B T N H"], gate: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    return out * jax.nn.sigmoid(gate.astype(jnp.float32)).astype(out.dtype)
