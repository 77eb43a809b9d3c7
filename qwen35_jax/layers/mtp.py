"""The multi-token-prediction head: one more attention layer that predicts a token further ahead.

Letters: ``B`` batch, ``T`` tokens, ``D`` model width.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from qwen35_jax.config import FULL, TextConfig
from qwen35_jax.layers.decoder import DecoderLayer
from qwen35_jax.layers.linear import Linear
from qwen35_jax.layers.norms import RMSNorm
from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.layers.tokens import Tokens
from qwen35_jax.state import KeyValues


class MTPHead(nnx.Module):
    """Joins the vector of a token with the embedding of a later one and runs one attention layer.

    The output, after ``norm``, goes through the shared output head. The next step takes it as ``hidden``, with the
    embedding of one token further, and predicts one token further.

    Source: ``Qwen3_5MultiTokenPredictor`` in vLLM; arXiv:2412.19437, but with the embedding first.
    """

    def __init__(self, config: TextConfig, *, make: Parameters):
        dim, eps = config.hidden_size, config.rms_norm_eps
        self.pre_fc_norm_embedding = RMSNorm(dim, eps, make=make)
        self.pre_fc_norm_hidden = RMSNorm(dim, eps, make=make)
        self.fc = Linear("fc", 2 * dim, dim, (None, "embed"), make=make)
        self.layers = nnx.List([DecoderLayer(config, FULL, make=make) for _ in range(config.mtp.num_hidden_layers)])
        self.norm = RMSNorm(dim, eps, make=make)

    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        embedding: Float[Array, "B T D"],
        tokens: Tokens,
        state: KeyValues | None = None,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], KeyValues | None]:
        """Predicts the token after the one that ``embedding`` belongs to.

        Args:
          hidden: the decoder's output after its final norm, or this head's own output of the step before.
          embedding: at position ``i`` the embedding of token ``i + k`` in step ``k``.
          tokens: documents and angles at the positions of ``hidden``.
          state: keys and values of the tokens before.

        Returns:
          The vectors, and the memory after the call.
        """
        joined = [self.pre_fc_norm_embedding(embedding), self.pre_fc_norm_hidden(hidden)]
        x = self.fc(jnp.concatenate(joined, axis=-1), dropout_key)
        x, after = self.layers[0](x, tokens, state, dropout_key)
        assert after is None or isinstance(after, KeyValues)
        return self.norm(x), after
