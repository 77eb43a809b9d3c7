"""The loss terms of fine-tuning: next-token cross-entropy and the multi-token-prediction loss.

Every term is a sum over trained targets with a count of its own. Sums add up over micro-batches and counts are
taken over the whole global batch, so that neither value nor gradient depends on how a batch is split.

Letters: B batch, T tokens, D model width.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qwen35_jax.layers.recompute import Remat
from qwen35_jax.model import Qwen35
from qwen35_jax.ops.linear_cross_entropy import linear_cross_entropy
from qwen35_jax.ops.positions import shift_left
from train.config import MtpLossConfig

Batch = Mapping[str, Array]
"""``input_ids``, ``segment_ids`` int32 and ``trained`` bool, each [B, T]; ``trained[t]``: token t is a target."""

Terms = dict[str, Float[Array, ""]]


class Objective(NamedTuple):
    """What a step minimises: ``sum(weights[name] * sums[name] / counts[name])`` over the terms.

    ``counts`` takes a whole batch; ``sums`` takes the model, a micro-batch and a dropout key (or None).
    """

    weights: Mapping[str, float]
    counts: Callable[[Batch], Terms]
    sums: Callable[[Qwen35, Batch, PRNGKeyArray | None], Terms]


def sft_objective(mtp: MtpLossConfig, *, loss_chunk: int, remat: Remat) -> Objective:
    """Builds the main term ``loss`` and, unless its weight is 0, a term for each MTP step.

    These are ``mtp_loss`` for the first step, which predicts two tokens ahead, then ``mtp_loss_2`` and so on.

    Args:
      loss_chunk: positions of each row whose logits exist at once.
      remat: what the backward pass keeps of each period of layers.
    """
    mtp_steps = range(1, mtp.num_steps + 1) if mtp.weight else range(0)
    offsets = {"loss": 1} | {"mtp_loss" if k == 1 else f"mtp_loss_{k}": k + 1 for k in mtp_steps}
    weights = {name: mtp.weight / mtp.num_steps for name in offsets} | {"loss": 1.0}

    def counts(batch: Batch) -> Terms:
        return {name: shifted_targets(batch, offset)[1].sum() for name, offset in offsets.items()}

    def sums(model: Qwen35, batch: Batch, dropout_key: PRNGKeyArray | None) -> Terms:
        inputs = (batch["input_ids"], batch["segment_ids"])
        hidden, _ = model.forward(*inputs, remat=remat, dropout_key=dropout_key)
        hiddens, heads = [hidden], [model.head_weight()]
        if mtp_steps:
            mtp_model, mtp_hidden = _cut_gradient(model, hidden, mtp.gradient)
            ahead = mtp_model.mtp_forward(
                mtp_hidden, *inputs, num_steps=mtp.num_steps, remat=remat, dropout_key=dropout_key
            )
            hiddens += ahead
            heads += [mtp_model.head_weight()] * len(ahead)
        return {
            name: linear_cross_entropy(h, head, *shifted_targets(batch, offset), chunk_tokens=loss_chunk)
            for (name, offset), h, head in zip(offsets.items(), hiddens, heads, strict=True)
        }

    return Objective(weights, counts, sums)


def shifted_targets(batch: Batch, offset: int) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """Returns for each position the token ``offset`` later, and weight 1 where it is a target.

    It is one where that token trains and belongs to the same document; elsewhere the weight is 0.
    """
    segment_ids = batch["segment_ids"]
    same_document = (shift_left(segment_ids, offset) == segment_ids) & (segment_ids > 0)
    weights = same_document & (shift_left(batch["trained"].astype(jnp.int32), offset) > 0)
    return shift_left(batch["input_ids"], offset), weights.astype(jnp.float32)


def _cut_gradient(model: Qwen35, hidden: Float[Array, "B T D"], gradient: str) -> tuple[Qwen35, Float[Array, "B T D"]]:
    """Returns the model and the trunk's output as the MTP loss may differentiate them (see MtpLossConfig)."""
    if gradient == "joint":
        return model, hidden
    hidden = jax.lax.stop_gradient(hidden)
    if gradient == "detach_trunk":
        return model, hidden
    graphdef, block, rest = nnx.split(model, in_mtp_block, ...)
    return nnx.merge(graphdef, block, jax.lax.stop_gradient(rest), copy=True), hidden


def in_mtp_block(path: tuple, value: object) -> bool:
    """Selects, as an nnx filter, the parameters of the MTP block and their adapters."""
    del value
    return path[0] == "mtp"
