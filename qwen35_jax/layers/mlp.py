"""The dense gated MLP. Letters: ``B`` batch, ``T`` tokens, ``D`` model width, ``F`` hidden width."""

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from qwen35_jax.layers.linear import Linear
from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.layers.recompute import recomputed
from qwen35_jax.sharding import constrain


class GatedMLP(nnx.Module):
    """Computes ``down(silu(gate(x)) * up(x))`` without biases. Source: ``Qwen3_5MLP`` in transformers."""

    def __init__(self, dim: int, hidden_dim: int, *, make: Parameters):
        self.gate_proj = Linear("gate_proj", dim, hidden_dim, ("embed", "mlp"), make=make)
        self.up_proj = Linear("up_proj", dim, hidden_dim, ("embed", "mlp"), make=make)
        self.down_proj = Linear("down_proj", hidden_dim, dim, ("mlp", "embed"), make=make)

    def __call__(self, x: Float[Array, "B T D"], dropout_key: PRNGKeyArray | None = None) -> Float[Array, "B T D"]:
        hidden = _gated(self.gate_proj(x, dropout_key), self.up_proj(x, dropout_key))
        return self.down_proj(constrain(hidden, ("batch", "length", "mlp")), dropout_key)


@recomputed
def _gated(gate: Float[Array, "B T F"], up: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    return jax.nn.silu(gate) * up
