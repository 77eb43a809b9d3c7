"""Supervised fine-tuning: the cross-entropy of the next token, and of tokens further ahead by the MTP head.

Letters: B batch, T tokens, D model width, V vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from qwen35_jax.config import TextConfig
from qwen35_jax.layers.recompute import Remat
from qwen35_jax.model import Qwen35
from qwen35_jax.ops.linear_cross_entropy import linear_cross_entropy
from train.batch import TOKEN_FIELDS, Batch, Fields
from train.objectives.terms import Objective, Terms, count_targets, in_mtp_block, shifted_targets


@dataclass(frozen=True)
class MtpLossConfig:
    """The loss of the multi-token-prediction head, which is added to the main loss.

    ``gradient`` says what the MTP loss may change; the main loss always reaches everything but the MTP block.
    ``joint``: trunk, embeddings, output head and MTP block. ``detach_trunk``: not the trunk, since no gradient passes
    into the hidden states that the MTP block reads. ``head_only``: the MTP block alone, that is, parameters whose name
    begins with ``mtp.`` and their adapters.
    """

    weight: float = 0.1
    """Factor of the MTP loss, split evenly over its steps; 0 leaves the MTP block untrained and unchanged."""
    num_steps: int = 1
    """How many tokens beyond the next one are predicted. Each step reads the output of the one before."""
    gradient: Literal["joint", "detach_trunk", "head_only"] = "joint"
    """Which parameters the MTP loss trains."""

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"mtp.weight={self.weight} is negative; give 0 to train without the MTP loss.")
        if self.num_steps < 1:
            raise ValueError(f"mtp.num_steps={self.num_steps} must be at least 1; mtp.weight=0 turns MTP off.")


@dataclass(frozen=True)
class Supervised:
    """Minimises the main loss and the MTP loss on the trained tokens of documents."""

    mtp: MtpLossConfig = MtpLossConfig()
    kind: Annotated[str, tyro.conf.Suppress, tyro.conf.arg(name="objective")] = field(default="supervised", init=False)
    """For the run record, which must tell one objective from another."""

    @property
    def batch_fields(self) -> Fields:
        """The arrays that a batch must hold."""
        return TOKEN_FIELDS

    @property
    def mtp_steps(self) -> int:
        """How often the MTP head runs for each batch."""
        return self.mtp.num_steps if self.mtp.weight else 0

    @property
    def trains_mtp(self) -> bool:
        """Whether a run may train the MTP head; without its loss, weight decay alone would change it."""
        return self.mtp.weight > 0

    def check_trained(self, groups: Collection[str], *, option: str) -> None:
        """Checks that no loss misses all that trains, and nothing that trains misses all losses.

        Raises:
          ValueError: one does, so that it would be useless without a word.
        """
        if self.mtp.weight == 0:
            if "mtp" in groups:
                raise ValueError(
                    f"{option} has 'mtp', but mtp.weight=0 never trains it; remove it or raise mtp.weight."
                )
            return
        reach = {"joint": set(groups), "detach_trunk": {"mtp", "embed", "head"}, "head_only": {"mtp"}}
        if not reach[self.mtp.gradient] & set(groups):
            raise ValueError(
                f"mtp.gradient={self.mtp.gradient!r} reaches nothing that {option} chooses; "
                f"add 'mtp' to it, or use mtp.gradient='joint', or mtp.weight=0."
            )

    def check_model(self, text: TextConfig, folder: Path) -> None:
        """Checks that there is an MTP head for the MTP loss.

        Raises:
          ValueError: there is none.
        """
        if self.mtp.weight and not text.mtp.num_hidden_layers:
            raise ValueError(
                f"{folder} has no MTP head (mtp.* tensors), but mtp.weight={self.mtp.weight}; set mtp.weight=0 or "
                "start from a checkpoint that has one."
            )

    def make(self, *, loss_chunk: int, remat: Remat) -> Objective:
        """Builds the main term ``loss`` and, unless its weight is 0, a term for each MTP step.

        These are ``mtp_loss`` for the first step, which predicts two tokens ahead, then ``mtp_loss_2`` and so on.

        Args:
          loss_chunk: positions of each sequence whose logits exist at once.
          remat: what the backward pass keeps of each period of layers.
        """
        mtp_names = ["mtp_loss" if k == 1 else f"mtp_loss_{k}" for k in range(1, self.mtp_steps + 1)]
        offsets = {name: offset for offset, name in enumerate(["loss", *mtp_names], start=1)}
        weights = {"loss": 1.0} | dict.fromkeys(mtp_names, self.mtp.weight / self.mtp.num_steps)

        def counts(batch: Batch) -> Terms:
            return {name: count_targets(batch, offset) for name, offset in offsets.items()}

        def sums(
            model: Qwen35, batch: Batch, dropout_key: PRNGKeyArray | None, reference: Qwen35 | None = None
        ) -> Terms:
            del reference
            outputs = _outputs(model, batch, self, remat=remat, dropout_key=dropout_key)
            return {
                name: linear_cross_entropy(hidden, head, *shifted_targets(batch, offset), chunk_tokens=loss_chunk)
                for (name, offset), (hidden, head) in zip(offsets.items(), outputs, strict=True)
            }

        return Objective(weights, counts, sums)


def _outputs(
    model: Qwen35, batch: Batch, settings: Supervised, *, remat: Remat, dropout_key: PRNGKeyArray | None
) -> list[tuple[Float[Array, "B T D"], Float[Array, "V D"]]]:
    """Returns hidden states and the weight of the output head, for the next token and for each MTP step."""
    inputs, options = (batch["input_ids"], batch["segment_ids"]), {"remat": remat, "dropout_key": dropout_key}
    hidden, _ = model.forward(*inputs, **options)
    outputs = [(hidden, model.head_weight())]
    if settings.mtp_steps:
        mtp_model, mtp_hidden = _cut_gradient(model, hidden, settings.mtp.gradient)
        ahead = mtp_model.mtp_forward(mtp_hidden, *inputs, num_steps=settings.mtp_steps, **options)
        outputs += [(each, mtp_model.head_weight()) for each in ahead]
    return outputs


def _cut_gradient(model: Qwen35, hidden: Float[Array, "B T D"], gradient: str) -> tuple[Qwen35, Float[Array, "B T D"]]:
    """Returns the model and the trunk's output as the MTP loss may differentiate them (see ``MtpLossConfig``)."""
    if gradient == "joint":
        return model, hidden
    hidden = jax.lax.stop_gradient(hidden)
    if gradient == "detach_trunk":
        return model, hidden
    graphdef, block, rest = nnx.split(model, in_mtp_block, ...)
    return nnx.merge(graphdef, block, jax.lax.stop_gradient(rest), copy=True), hidden
