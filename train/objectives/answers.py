"""What a distillation must know of a batch's tokens: which are labels, and how far into its answer a token stands.

Letters: B batch, T tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen35_jax.ops.positions import shift_left
from train.batch import Batch
from train.objectives.terms import shifted_targets

NUM_QUARTERS = 4


def quarter_names(figure: str) -> tuple[str, ...]:
    """Returns what a figure is called in each quarter of the answers."""
    return tuple(f"{figure}_quarter_{number}" for number in range(1, NUM_QUARTERS + 1))


def labelled_targets(batch: Batch) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """Returns the next token for each position, and weight 1 where it is a target that the data give."""
    targets, weights = shifted_targets(batch, 1)
    if "labelled" in batch:
        weights *= shift_left(batch["labelled"].astype(jnp.float32), 1)
    return targets, weights


def quarters(batch: Batch) -> Int[Array, "B T"]:
    """Returns for each position in which quarter of its document's targets the next token is, from 0 to 3."""
    _, weights = shifted_targets(batch, 1)
    before = _count_before(weights, batch["segment_ids"])
    after = _count_before(weights[:, ::-1], batch["segment_ids"][:, ::-1])[:, ::-1]
    return (4 * before // jnp.maximum(before + weights + after, 1)).astype(jnp.int32)


def count_quarters(batch: Batch) -> list[Float[Array, ""]]:
    """Counts the targets of each quarter."""
    _, weights = shifted_targets(batch, 1)
    numbers = quarters(batch)
    return [jnp.sum(weights * (numbers == number)) for number in range(NUM_QUARTERS)]


def _count_before(weights: Float[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Counts the targets of the same document at earlier positions."""
    before = jnp.cumsum(weights, axis=1) - weights
    begins = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return before - jax.lax.cummax(jnp.where(begins, before, 0), axis=1)
