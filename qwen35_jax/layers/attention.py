"""Gated attention: grouped queries, normalised queries and keys, and a sigmoid gate on the output.

Letters: ``B`` batch, ``T`` tokens of this call, ``S`` key slots, ``D`` model width, ``N`` query heads, ``K`` key
heads, ``H`` head width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qwen35_jax.cache import KVCache
from qwen35_jax.config import TextConfig
from qwen35_jax.layers.linear import Linear
from qwen35_jax.layers.norms import RMSNorm
from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.layers.recompute import recomputed
from qwen35_jax.layers.tokens import Tokens
from qwen35_jax.ops.attention import attention
from qwen35_jax.ops.on_mesh import attention_rows
from qwen35_jax.ops.rotary import apply_rotary


class GatedAttention(nnx.Module):
    """Causal attention within documents; ``q_proj`` holds, for each head, its query rows and then its gate rows.

    Source: ``Qwen3_5Attention`` in transformers.
    """

    def __init__(self, cfg: TextConfig, *, make: Parameters):
        dim, width, heads, kv_heads = cfg.hidden_size, cfg.head_dim, cfg.num_attention_heads, cfg.num_key_value_heads
        self.head_dim = width
        self.q_proj = Linear("q_proj", dim, heads * width * 2, ("embed", ("heads", heads)), make=make)
        self.k_proj = Linear("k_proj", dim, kv_heads * width, ("embed", ("heads", kv_heads)), make=make)
        self.v_proj = Linear("v_proj", dim, kv_heads * width, ("embed", ("heads", kv_heads)), make=make)
        self.o_proj = Linear("o_proj", heads * width, dim, (("heads", heads), "embed"), make=make)
        self.q_norm = RMSNorm(width, cfg.rms_norm_eps, make=make)
        self.k_norm = RMSNorm(width, cfg.rms_norm_eps, make=make)

    def __call__(
        self, x: Float[Array, "B T D"], tokens: Tokens, cache: KVCache | None = None
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Attends to the tokens of this call and, with a cache (one layer's, (B, S, K, H)), to those before.

        Returns:
          The output and, with a cache, the keys and values of this call's tokens: (B, T, K, H).
        """
        key, B, T = tokens.dropout_key, *x.shape[:2]
        q, gate = jnp.split(self.q_proj(x, key).reshape(B, T, -1, 2 * self.head_dim), 2, axis=-1)
        k, v = (project(x, key).reshape(B, T, -1, self.head_dim) for project in (self.k_proj, self.v_proj))
        q = apply_rotary(self.q_norm(q), tokens.cos, tokens.sin)
        k = apply_rotary(self.k_norm(k), tokens.cos, tokens.sin)
        if cache is None:
            out = attention_rows(q, k, v, tokens.segment_ids)
        else:
            start = (0, tokens.length, 0, 0)
            out = attention(
                q,
                jax.lax.dynamic_update_slice(cache.k, k.astype(cache.k.dtype), start),
                jax.lax.dynamic_update_slice(cache.v, v.astype(cache.v.dtype), start),
                query_slots=tokens.length + jnp.arange(T),
                segment_ids=tokens.segment_ids,
                key_segment_ids=tokens.key_segment_ids,
            )
        new = None if cache is None else KVCache(k, v)
        return self.o_proj(_gated(out, gate).reshape(B, T, -1), key), new


@recomputed
def _gated(out: Float[Array, "B T N H"], gate: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    return out * jax.nn.sigmoid(gate.astype(jnp.float32)).astype(out.dtype)
