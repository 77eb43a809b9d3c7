"""One decoder layer: a token mixer and an MLP, each behind a norm and a residual.

Letters: ``B`` batch, ``T`` tokens of this call, ``D`` model width.
"""

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from qwen35_jax.config import LINEAR, TextConfig
from qwen35_jax.layers.attention import GatedAttention
from qwen35_jax.layers.deltanet import GatedDeltaNet
from qwen35_jax.layers.mlp import GatedMLP
from qwen35_jax.layers.norms import RMSNorm
from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.layers.tokens import Tokens
from qwen35_jax.ops.gated_delta import DeltaRule
from qwen35_jax.sharding import constrain
from qwen35_jax.state import DeltaMemory, KeyValues, LayerMemory


class DecoderLayer(nnx.Module):
    """A layer of kind ``"linear_attention"`` or ``"full_attention"``.

    Source: ``Qwen3_5DecoderLayer`` in transformers.
    """

    def __init__(self, config: TextConfig, kind: str, *, make: Parameters, delta_rule: DeltaRule = "auto"):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, make=make)
        if kind == LINEAR:
            self.linear_attn = GatedDeltaNet(config, make=make, delta_rule=delta_rule)
        else:
            self.self_attn = GatedAttention(config, make=make)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, make=make)
        assert config.intermediate_size is not None, "only a mixture-of-experts size has none, and Qwen35 refuses those"
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, make=make)
        self.kind = kind

    def __call__(
        self,
        x: Float[Array, "B T D"],
        tokens: Tokens,
        state: LayerMemory | None = None,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerMemory | None]:
        normed = self.input_layernorm(x)
        if self.kind == LINEAR:
            assert state is None or isinstance(state, DeltaMemory)
            mixed, state = self.linear_attn(normed, tokens, state, dropout_key)
        else:
            assert state is None or isinstance(state, KeyValues)
            mixed, state = self.self_attn(normed, tokens, state, dropout_key)
        x = x + mixed
        x = x + self.mlp(self.post_attention_layernorm(x), dropout_key)
        return constrain(x, ("batch", "length", "features")), state
