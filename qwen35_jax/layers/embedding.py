"""The token embedding and the untied output head.

Letters: ``B`` batch, ``T`` tokens, ``V`` vocabulary, ``D`` model width, ``R`` rank of an adapter.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.ops.lookup import take_rows


class Embedding(nnx.Module):
    """Looks tokens up in a table [V, D]; a tied output head reads the same ``weight``.

    An adapter (``lora_a`` [V, R], ``lora_b`` [R, D]) acts on look-ups only, never on a tied head. PEFT does the same
    with an adapted embedding.
    """

    def __init__(self, vocab_size: int, dim: int, *, make: Parameters):
        self.name = "embed_tokens"
        self.weight = make.normal((vocab_size, dim), ("vocab", "embed"))
        self.lora_a: nnx.LoRAParam | None = nnx.data(None)
        self.lora_b: nnx.LoRAParam | None = nnx.data(None)
        self.lora_scale = 0.0
        self.lora_dropout = 0.0

    def __call__(self, input_ids: Int[Array, "B T"], *, dtype: DTypeLike) -> Float[Array, "B T D"]:
        x = take_rows(self.weight[...], input_ids, dtype=dtype)
        if self.lora_a is None or self.lora_b is None:
            return x
        low_rank = jnp.take(self.lora_a[...], input_ids, axis=0).astype(dtype)
        return x + (low_rank @ self.lora_b[...].astype(dtype)) * self.lora_scale


class OutputHead(nnx.Module):
    """The weight of an output head that is not tied to the embedding: [V, D], as in the checkpoint."""

    def __init__(self, vocab_size: int, dim: int, *, make: Parameters):
        self.weight = make.normal((vocab_size, dim), ("vocab", "embed"))
