"""What an objective is made of: terms that add up over micro-batches, each with a count of its own.

Every term is a sum over trained targets. Sums add up over micro-batches, and counts are taken over the whole global
batch. So neither value nor gradient depends on how a batch is split.

Letters: B batch, T tokens, V vocabulary, E width of a teacher.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qwen35_jax.config import TextConfig
from qwen35_jax.layers.recompute import Remat
from qwen35_jax.model import Qwen35
from qwen35_jax.ops.positions import shift_left
from train.batch import Batch, Fields

Terms = dict[str, Float[Array, ""]]


class Sums(Protocol):
    """Computes the terms of one micro-batch."""

    def __call__(
        self,
        model: Qwen35,
        batch: Batch,
        dropout_key: PRNGKeyArray | None,
        teacher_head: Float[Array, "V E"] | None = None,
    ) -> Terms:
        """Returns the sum of every term.

        Args:
          model: what is trained.
          dropout_key: turns adapter dropout on.
          teacher_head: the weight of a teacher's output head, for hidden states of the teacher in the batch.
        """
        ...


class Objective(NamedTuple):
    """What a step minimises: ``sum(weights[name] * sums[name] / counts[name])`` over the terms.

    The first of the weights belongs to the main term. Its count is what a run reports as ``tokens``.
    """

    weights: Mapping[str, float]
    counts: Callable[[Batch], Terms]
    """Counts the targets of every term in a batch or a micro-batch."""
    sums: Sums


# Other fields of the metrics, which a term would hide.
_TAKEN = {"step", "tokens", "input_tokens", "grad_norm", "learning_rate", "skipped", "packing_efficiency"}


def check_terms(objective: Objective, sums: Terms, counts: Terms) -> None:
    """Checks that weights, sums and counts are of the same terms, which are called like nothing else in the metrics.

    Raises:
      ValueError: they are not.
    """
    if not objective.weights:
        raise ValueError("the objective has no term; give at least one weight, with a sum and a count.")
    if not objective.weights.keys() == sums.keys() == counts.keys():
        weights, sums_of, counts_of = (", ".join(names) for names in (objective.weights, sums, counts))
        raise ValueError(
            f"the objective has weights of {weights}, sums of {sums_of} and counts of {counts_of}; each term needs all "
            "three. A term of weight 0 is reported and trains nothing."
        )
    for name in objective.weights:
        if name in _TAKEN or name.startswith("eval_") or name.endswith(("seconds", "per_second")):
            raise ValueError(f"the objective has a term {name!r}, which is a field of the metrics; call it otherwise.")


class ObjectiveSettings(Protocol):
    """What the settings of an objective tell the rest of the trainer."""

    @property
    def kind(self) -> str:
        """The name of this kind of objective, for the run record and for messages."""
        ...

    @property
    def batch_fields(self) -> Fields:
        """The arrays that a batch must hold."""
        ...

    @property
    def mtp_steps(self) -> int:
        """How often the MTP head runs for each batch."""
        ...

    @property
    def trains_mtp(self) -> bool:
        """Whether a run may train the MTP head."""
        ...

    def check_trained(self, groups: Collection[str], *, option: str) -> None:
        """Raises a ValueError if what trains, by groups of ``qwen35_jax.targets``, contradicts the objective.

        Args:
          option: which option chose it, for the message.
        """
        ...

    def check_model(self, text: TextConfig, folder: Path) -> None:
        """Raises a ValueError if the model of a folder lacks what the objective needs."""
        ...

    def make(self, *, loss_chunk: int, remat: Remat, validates: bool = False) -> Objective:
        """Builds the objective.

        Args:
          loss_chunk: positions of each sequence whose logits exist at once.
          remat: what the backward pass keeps of each period of layers.
          validates: for validation, which may report more terms than a step does, and has no rollouts.
        """
        ...


def shifted_targets(batch: Batch, offset: int) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """Returns for each position the token ``offset`` later, and weight 1 where it is a target.

    The weight is 1 where that token is trained and belongs to the same document, and 0 elsewhere.
    """
    segment_ids = batch["segment_ids"]
    same_document = (shift_left(segment_ids, offset) == segment_ids) & (segment_ids > 0)
    weights = same_document & (shift_left(batch["trained"].astype(jnp.int32), offset) > 0)
    return shift_left(batch["input_ids"], offset), weights.astype(jnp.float32)


def count_targets(batch: Batch, offset: int) -> Float[Array, ""]:
    """Counts the positions whose token ``offset`` later is a target."""
    return shifted_targets(batch, offset)[1].sum()


def in_mtp_block(path: tuple, value: object) -> bool:
    """Selects, as an nnx filter, the parameters of the MTP block and their adapters."""
    del value
    return path[0] == "mtp"
