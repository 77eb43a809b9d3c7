"""Gated DeltaNet: a short convolution, the gated delta rule, and a gated norm.

Letters: ``B`` batch, ``T`` tokens, ``D`` model width, ``C`` conv channels, ``N`` value heads, ``K`` and ``V`` key and
value width of a head, ``L`` tokens that the convolution looks back.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qwen35_jax.cache import DeltaState
from qwen35_jax.config import TextConfig
from qwen35_jax.layers.linear import Linear
from qwen35_jax.layers.norms import GatedRMSNorm
from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.layers.recompute import recomputed
from qwen35_jax.layers.tokens import Tokens
from qwen35_jax.ops.conv import causal_conv
from qwen35_jax.ops.gated_delta import gated_delta, l2_normalize
from qwen35_jax.ops.on_mesh import causal_conv_rows, gated_delta_rows


class DepthwiseConv(nnx.Module):
    """The weight of a causal depthwise convolution: (C, W), the last tap on the current token."""

    def __init__(self, channels: int, taps: int, *, make: Parameters):
        self.weight = make.normal((channels, taps), ("heads", None))


class GatedDeltaNet(nnx.Module):
    """Linear attention with a delta-rule state per value head.

    ``in_proj_qkv``, ``in_proj_z``, ``in_proj_b`` and ``in_proj_a`` stay separate, as in the checkpoint. Each key head
    serves ``num_value_heads / num_key_heads`` consecutive value heads.

    Source: ``Qwen3_5GatedDeltaNet`` in transformers; arXiv:2412.06464. Here ``beta`` is float32 too.
    """

    def __init__(self, cfg: TextConfig, *, make: Parameters):
        dim, heads = cfg.hidden_size, cfg.linear_num_value_heads
        self.key_dim, self.key_head_dim = cfg.key_dim, cfg.linear_key_head_dim
        self.num_heads, self.heads_per_key = heads, heads // cfg.linear_num_key_heads
        self.in_proj_qkv = Linear("in_proj_qkv", dim, cfg.conv_dim, ("embed", "heads"), make=make)
        self.in_proj_z = Linear("in_proj_z", dim, cfg.value_dim, ("embed", "heads"), make=make)
        self.in_proj_b = Linear("in_proj_b", dim, heads, ("embed", "heads"), make=make)
        self.in_proj_a = Linear("in_proj_a", dim, heads, ("embed", "heads"), make=make)
        self.conv1d = DepthwiseConv(cfg.conv_dim, cfg.linear_conv_kernel_dim, make=make)
        self.A_log = make.log_uniform((heads,), ("heads",))
        self.dt_bias = make.constant((heads,), ("heads",), fill=1.0)
        self.norm = GatedRMSNorm(cfg.linear_value_head_dim, cfg.rms_norm_eps, make=make)
        self.out_proj = Linear("out_proj", cfg.value_dim, dim, ("heads", "embed"), make=make)

    def __call__(
        self, x: Float[Array, "B T D"], tokens: Tokens, cache: DeltaState | None = None
    ) -> tuple[Float[Array, "B T D"], DeltaState | None]:
        """Mixes the tokens, starting from one layer's window (B, W-1, C) and state (B, N, K, V) if given."""
        key, B, T = tokens.dropout_key, *x.shape[:2]
        documents = {"segment_ids": tokens.segment_ids, "state_segment_ids": tokens.state_segment_ids}
        window = None if cache is None else cache.conv

        q, k, v, window = recomputed(self._convolved_heads)(self.in_proj_qkv(x, key), window, documents)
        beta = jax.nn.sigmoid(self.in_proj_b(x, key).astype(jnp.float32))
        step = jax.nn.softplus(self.in_proj_a(x, key).astype(jnp.float32) + self.dt_bias[...].astype(jnp.float32))
        log_decay = -jnp.exp(self.A_log[...].astype(jnp.float32)) * step
        if cache is None:
            out, new = gated_delta_rows(q, k, v, log_decay, beta, tokens.segment_ids), None
        else:
            out, state = gated_delta(q, k, v, log_decay, beta, cache.state, **documents)
            new = DeltaState(window, state)
        z = self.in_proj_z(x, key).reshape(out.shape)
        return self.out_proj(self.norm(out, z).reshape(B, T, -1), key), new

    def _convolved_heads(self, projected: Float[Array, "B T C"], window: Float[Array, "B L C"] | None, documents):
        """Returns normalised queries (scaled) and keys, values, all by value head, and the new window if any."""
        taps = self.conv1d.weight[...].astype(projected.dtype)
        if window is None:
            mixed = causal_conv_rows(projected, taps, documents["segment_ids"])
        else:
            mixed, window = causal_conv(projected, taps, window, **documents)
        parts = jnp.split(jax.nn.silu(mixed), [self.key_dim, 2 * self.key_dim], axis=-1)
        # Cutting is kept apart from what follows: libtpu 0.0.52 dies of some fusions of the two.
        q, k, v = jax.lax.optimization_barrier(parts)
        q, k = (self._normalised_heads(part) for part in (q, k))
        # In the compute dtype, as the reference has them: products of bfloat16 numbers are exact in float32.
        q, k = (q * self.key_head_dim**-0.5).astype(v.dtype), k.astype(v.dtype)
        return q, k, v.reshape(*v.shape[:2], self.num_heads, -1), window

    def _normalised_heads(self, x: Float[Array, "B T KD"]) -> Float[Array, "B T N K"]:
        heads = l2_normalize(x.reshape(*x.shape[:2], -1, self.key_head_dim))
        return jnp.repeat(heads, self.heads_per_key, axis=2)
