"""What the losses read of the model: hidden states with the weight of the output head, for each token ahead.

Letters: B batch, T tokens, D model width, V vocabulary.
"""

from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from qwen35_jax.layers.recompute import Remat
from qwen35_jax.model import Qwen35
from train.batch import Batch
from train.objectives.inputs import model_inputs
from train.objectives.mtp import MtpGradient, MtpLossConfig
from train.objectives.terms import in_mtp_block


class HeadInput(NamedTuple):
    """What a loss on logits is computed from; the logits are ``hidden @ head.T``."""

    hidden: Float[Array, "B T D"]
    head: Float[Array, "V D"]


def head_inputs(
    model: Qwen35,
    batch: Batch,
    *,
    mtp: MtpLossConfig,
    remat: Remat,
    dropout_key: PRNGKeyArray | None,
) -> list[HeadInput]:
    """Returns what predicts the next token, then for each MTP step what predicts a token further ahead."""
    options = {"remat": remat, "dropout_key": dropout_key}
    inputs = model_inputs(model, batch, **options)
    embedded = inputs.embed(model)
    hidden, _ = model.forward(*inputs.tokens, embedded=embedded, **options)
    found = [HeadInput(hidden, model.head_weight())]
    if mtp.steps:
        mtp_model, mtp_hidden = _cut_gradient(model, hidden, mtp.gradient)
        if mtp.gradient != "joint":
            embedded = inputs._replace(features=jax.lax.stop_gradient(inputs.features)).embed(mtp_model)
        ahead = mtp_model.mtp_forward(mtp_hidden, *inputs.tokens, embedded=embedded, num_steps=mtp.steps, **options)
        found += [HeadInput(each, mtp_model.head_weight()) for each in ahead]
    return found


def _cut_gradient(
    model: Qwen35, hidden: Float[Array, "B T D"], gradient: MtpGradient
) -> tuple[Qwen35, Float[Array, "B T D"]]:
    """Returns the model and the trunk's output as the MTP loss may differentiate them (``MtpLossConfig``)."""
    if gradient == "joint":
        return model, hidden
    hidden = jax.lax.stop_gradient(hidden)
    if gradient == "detach_trunk":
        return model, hidden
    graphdef, block, rest = nnx.split(model, in_mtp_block, ...)
    return nnx.merge(graphdef, block, jax.lax.stop_gradient(rest), copy=True), hidden
