"""Gated DeltaNet: a short convolution, the gated delta rule, and a gated norm.

Letters: ``B`` batch, ``T`` tokens, ``D`` model width, ``C`` conv channels, ``N`` value heads, ``K`` and ``V`` key and
value width of a head, ``L`` tokens that the convolution looks back.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qwen35_jax.config import TextConfig
from qwen35_jax.layers.linear import Linear
from qwen35_jax.layers.norms import GatedRMSNorm
from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.layers.recompute import recomputed
from qwen35_jax.layers.tokens import Tokens
from qwen35_jax.ops.conv import causal_conv_sharded
from qwen35_jax.ops.gated_delta import DeltaRule, l2_normalize
from qwen35_jax.ops.gated_delta.sharded import gated_delta_sharded
from qwen35_jax.state import DeltaMemory


class DepthwiseConv(nnx.Module):
    """The weight of a causal depthwise convolution, [C, W] with ``W`` taps; the last tap is for the current token."""

    def __init__(self, channels: int, taps: int, *, make: Parameters):
        self.weight = make.normal((channels, taps), ("heads", None))


class GatedDeltaNet(nnx.Module):
    """Linear attention with a delta-rule state per value head.

    ``in_proj_qkv``, ``in_proj_z``, ``in_proj_b`` and ``in_proj_a`` stay separate, as in the checkpoint. Each key head
    serves ``num_value_heads / num_key_heads`` consecutive value heads.

    Source: ``Qwen3_5GatedDeltaNet`` in transformers; arXiv:2412.06464. Here ``beta`` is float32 too.
    """

    def __init__(self, config: TextConfig, *, make: Parameters, delta_rule: DeltaRule = "auto"):
        dim, heads = config.hidden_size, config.linear_num_value_heads
        self.key_dim, self.key_head_dim = config.key_dim, config.linear_key_head_dim
        self.num_heads, self.heads_per_key = heads, heads // config.linear_num_key_heads
        self.delta_rule = delta_rule
        self.in_proj_qkv = Linear("in_proj_qkv", dim, config.conv_dim, ("embed", "heads"), make=make)
        self.in_proj_z = Linear("in_proj_z", dim, config.value_dim, ("embed", "heads"), make=make)
        self.in_proj_b = Linear("in_proj_b", dim, heads, ("embed", "heads"), make=make)
        self.in_proj_a = Linear("in_proj_a", dim, heads, ("embed", "heads"), make=make)
        self.conv1d = DepthwiseConv(config.conv_dim, config.linear_conv_kernel_dim, make=make)
        self.A_log = make.log_uniform((heads,), ("heads",))
        self.dt_bias = make.constant((heads,), ("heads",), fill=1.0)
        self.norm = GatedRMSNorm(config.linear_value_head_dim, config.rms_norm_eps, make=make)
        self.out_proj = Linear("out_proj", config.value_dim, dim, ("heads", "embed"), make=make)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        tokens: Tokens,
        state: DeltaMemory | None = None,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], DeltaMemory | None]:
        """Mixes the tokens of this call and, with a memory, those before. Returns the memory after the call."""
        B, T = x.shape[:2]
        window = state_segment_ids = None
        if state is not None:
            assert tokens.placement is not None
            window = state.window(tokens.placement)
            state_segment_ids = tokens.placement.state_segment_ids
        documents = (tokens.segment_ids, state_segment_ids)

        projected = self.in_proj_qkv(x, dropout_key)
        q, k, v, window = recomputed(self._convolved_heads)(projected, window, *documents)
        beta = jax.nn.sigmoid(self.in_proj_b(x, dropout_key).astype(jnp.float32))
        dt_bias = self.dt_bias[...].astype(jnp.float32)
        step = jax.nn.softplus(self.in_proj_a(x, dropout_key).astype(jnp.float32) + dt_bias)
        log_decay = -jnp.exp(self.A_log[...].astype(jnp.float32)) * step
        if state is None:
            out, _ = gated_delta_sharded(q, k, v, log_decay, beta, None, *documents, delta_rule=self.delta_rule)
        else:
            assert tokens.segment_ids is not None
            out, state = state.recur(
                q, k, v, log_decay, beta, projected=projected, window=window, segment_ids=tokens.segment_ids,
                placement=tokens.placement, delta_rule=self.delta_rule,
            )  # fmt: skip
        z = self.in_proj_z(x, dropout_key).reshape(out.shape)
        return self.out_proj(self.norm(out, z).reshape(B, T, -1), dropout_key), state

    def _convolved_heads(
        self,
        projected: Float[Array, "B T C"],
        window: Float[Array, "B L C"] | None,
        segment_ids: Int[Array, "B T"] | None,
        state_segment_ids: Int[Array, " B"] | None,
    ):
        """Returns normalised queries (scaled) and keys, values, all by value head, and the new window if any."""
        taps = self.conv1d.weight[...].astype(projected.dtype)
        mixed, window = causal_conv_sharded(projected, taps, window, segment_ids, state_segment_ids)
        parts = jnp.split(jax.nn.silu(mixed), [self.key_dim, 2 * self.key_dim], axis=-1)
        # The cut is kept apart from what follows: the compiler of libtpu 0.0.52 crashes on some fusions of the two.
        q, k, v = jax.lax.optimization_barrier(parts)
        q, k = (self._normalised_heads(part) for part in (q, k))
        # In the compute dtype, as the reference has them: products of bfloat16 numbers are exact in float32.
        q, k = (q * self.key_head_dim**-0.5).astype(v.dtype), k.astype(v.dtype)
        return q, k, v.reshape(*v.shape[:2], self.num_heads, -1), window

    def _normalised_heads(self, x: Float[Array, "B T KD"]) -> Float[Array, "B T N K"]:
        heads = l2_normalize(x.reshape(*x.shape[:2], -1, self.key_head_dim))
        return jnp.repeat(heads, self.heads_per_key, axis=2)
