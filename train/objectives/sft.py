"""Supervised fine-tuning: the cross-entropy of the next token, and of tokens further ahead by the MTP head."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from jaxtyping import Array, Float, PRNGKeyArray

from qwen35_jax.layers.recompute import Remat
from qwen35_jax.model import Qwen35
from qwen35_jax.ops.linear_cross_entropy import linear_cross_entropy
from train.batch import TOKEN_FIELDS, Batch, Fields
from train.objectives.heads import head_inputs
from train.objectives.mtp import MtpLossConfig, WithMtp
from train.objectives.terms import Objective, Terms, count_targets, shifted_targets


@dataclass(frozen=True)
class Supervised(WithMtp):
    """Minimises the main loss and the MTP loss on the trained tokens of documents."""

    mtp: MtpLossConfig = MtpLossConfig()
    kind: Annotated[str, tyro.conf.Suppress, tyro.conf.arg(name="objective")] = field(default="supervised", init=False)
    """For the run record, which must tell one objective from another."""

    @property
    def batch_fields(self) -> Fields:
        """The arrays that a batch must hold."""
        return TOKEN_FIELDS

    def make(self, *, loss_chunk: int, remat: Remat, validates: bool = False) -> Objective:
        """Builds the main term ``loss`` and, unless its weight is 0, a term for each MTP step.

        Args:
          loss_chunk: positions of each sequence whose logits exist at once.
          remat: what the backward pass keeps of each period of layers.
          validates: changes nothing; validation reports the same terms.
        """
        del validates
        weights = {"loss": 1.0} | self.mtp.weights
        offsets = {name: offset for offset, name in enumerate(weights, start=1)}

        def counts(batch: Batch) -> Terms:
            return {name: count_targets(batch, offset) for name, offset in offsets.items()}

        def sums(
            model: Qwen35,
            batch: Batch,
            dropout_key: PRNGKeyArray | None,
            teacher_head: Float[Array, "V E"] | None = None,
        ) -> Terms:
            del teacher_head
            found = head_inputs(model, batch, mtp=self.mtp, remat=remat, dropout_key=dropout_key)
            return {
                name: linear_cross_entropy(*each, *shifted_targets(batch, offset), chunk_tokens=loss_chunk)
                for (name, offset), each in zip(offsets.items(), found, strict=True)
            }

        return Objective(weights, counts, sums)
