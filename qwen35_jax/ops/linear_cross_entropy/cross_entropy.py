"""The cross-entropy of a linear head with token ids.

Letters: B batch, T tokens, D model width, V vocabulary, C positions in a chunk.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen35_jax.ops.linear_cross_entropy.core import Extras, sum_over_chunks
from qwen35_jax.ops.linear_cross_entropy.vocabulary import VocabularyShard
from qwen35_jax.ops.lookup import take_rows


def linear_cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunk_tokens: int,
) -> Float[Array, ""]:
    """Sums ``weights * -log softmax(hidden @ head.T)[targets]`` over all tokens.

    The product runs in the dtype of ``hidden`` with float32 accumulation. Softmax, sums and the gradient of the head
    accumulate in float32. The memory that it takes is in the README.

    Args:
      targets: token ids in [0, V); ignored where the weight is 0.
      weights: weight of each token, 0 for tokens that do not train. Not differentiated.
      chunk_tokens: positions of each sequence per chunk; T need not be a multiple.

    Returns:
      The float32 sum; the caller divides by its own count.

    Raises:
      ValueError: ``chunk_tokens`` is not positive.
    """
    # One line of the head for each token, instead of a search through the chunk's logits.
    target_heads = take_rows(head, targets, dtype=hidden.dtype)
    target_logits = jnp.einsum("BTD,BTD->BT", hidden, target_heads, preferred_element_type=jnp.float32)
    inputs = jax.lax.stop_gradient((targets, weights, target_logits))
    total, _ = sum_over_chunks(_token_loss, hidden, head, inputs, chunk_tokens=chunk_tokens)
    return total


def _token_loss(
    logits: Float[Array, "B C V"],
    inputs: tuple[Int[Array, "B C"], Float[Array, "B C"], Float[Array, "B C"]],
    shard: VocabularyShard,
    frozen_logits: Float[Array, "B C V"] | None,
) -> tuple[Float[Array, ""], Float[Array, "B C V"], Extras]:
    del frozen_logits
    targets, weights, target_logits = inputs
    log_sum = shard.logsumexp(logits)
    gradient = weights[..., None] * (jnp.exp(logits - log_sum[..., None]) - shard.is_id(targets, logits))
    return jnp.sum(weights * (log_sum - target_logits)), gradient, {}
