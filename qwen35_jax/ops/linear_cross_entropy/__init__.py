"""Losses on the logits of a linear head, computed chunk by chunk. The README derives what is computed and what is kept.

``linear_cross_entropy`` is the loss on token ids. ``sum_over_chunks`` is the core that it and other losses share.
"""

from qwen35_jax.ops.linear_cross_entropy.core import FrozenHead, TokenLoss, VocabularyShard, sum_over_chunks
from qwen35_jax.ops.linear_cross_entropy.cross_entropy import linear_cross_entropy

__all__ = ["FrozenHead", "TokenLoss", "VocabularyShard", "linear_cross_entropy", "sum_over_chunks"]
