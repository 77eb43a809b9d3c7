"""Losses on the logits of a linear head, computed chunk by chunk. The README derives what is computed and what is kept.

``linear_cross_entropy`` is the loss on token ids. ``linear_divergence`` compares the head's distribution with that of a
teacher, ``linear_top_k_divergence`` with the stored top of one. ``sum_over_chunks`` is the core that they share.
"""

from qwen35_jax.ops.linear_cross_entropy.core import Extras, FrozenHead, TokenLoss, sum_over_chunks
from qwen35_jax.ops.linear_cross_entropy.cross_entropy import linear_cross_entropy
from qwen35_jax.ops.linear_cross_entropy.divergences import Divergence, linear_divergence
from qwen35_jax.ops.linear_cross_entropy.top_k import linear_top_k_divergence
from qwen35_jax.ops.linear_cross_entropy.vocabulary import VocabularyShard

__all__ = [
    "Divergence",
    "Extras",
    "FrozenHead",
    "TokenLoss",
    "VocabularyShard",
    "linear_cross_entropy",
    "linear_divergence",
    "linear_top_k_divergence",
    "sum_over_chunks",
]
