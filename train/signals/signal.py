"""The signal of a teacher: what it says at each position about the token that follows, as arrays of a batch.

The values at position ``i`` are about token ``i + 1``. Where that token is not trained, or belongs to another document,
they may be anything finite. Who made them, a live teacher or a store, does not show.

Letters: B batch, T tokens, E width of the teacher, V vocabulary, k most likely tokens.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen35_jax.ops.positions import shift_left
from train.batch import Batch, Field, Fields

SignalKind = Literal["hidden", "topk"]

STATES = "teacher_states"
"""The teacher's hidden states after its final norm, [B, T, E] in the dtype that the teacher computes in."""
IDS = "teacher_ids"
"""The teacher's k most likely tokens, the most likely first: int32 [B, T, k]."""
LOG_PROBS = "teacher_log_probs"
"""Their log-probabilities, natural logarithms: float16 [B, T, k]."""
TAIL = "teacher_tail"
"""The probability of all other tokens together, not its logarithm: float32 [B, T]."""


@runtime_checkable
class SignalSettings(Protocol):
    """What the settings of a teacher say about its signal."""

    @property
    def signal(self) -> SignalKind: ...

    @property
    def k(self) -> int:
        """Tokens of the signal ``topk``."""
        ...

    @property
    def width(self) -> int | None:
        """Width of the teacher, which the signal ``hidden`` needs."""
        ...

    @property
    def dtype(self) -> str:
        """What the teacher computes in."""
        ...


class Hidden(NamedTuple):
    """The signal ``hidden``, from which the whole distribution follows: the logits are ``states @ head.T``."""

    states: Float[Array, "B T E"]
    head: Float[Array, "V E"]

    def shift(self, offset: int) -> "Hidden":
        """Moves what is said at position ``i + offset``, about token ``i + offset + 1``, to position ``i``."""
        return Hidden(shift_left(self.states, offset), self.head)


class TopK(NamedTuple):
    """The signal ``topk``: the most likely tokens, and the mass of all others as one."""

    ids: Int[Array, "B T k"]
    log_probs: Float[Array, "B T k"]
    tail: Float[Array, "B T"]

    def shift(self, offset: int) -> "TopK":
        """Moves what is said at position ``i + offset``, about token ``i + offset + 1``, to position ``i``."""
        return TopK(*(shift_left(each, offset) for each in self))


Signal = Hidden | TopK


def signal_fields(settings: SignalSettings) -> Fields:
    """Returns the arrays that a signal adds to a batch.

    Raises:
      ValueError: the width of the teacher is not known yet.
    """
    if settings.signal == "topk":
        of_tokens = ("batch", "length", None)
        return {
            IDS: Field(jnp.int32, of_tokens, (settings.k,)),
            LOG_PROBS: Field(jnp.float16, of_tokens, (settings.k,)),
            TAIL: Field(jnp.float32),
        }
    if settings.width is None:
        raise ValueError("teacher.width is not known; the teacher's config.json or its store decides it.")
    return {STATES: Field(jnp.dtype(settings.dtype), ("batch", "length", None), (settings.width,))}


def signal_of(batch: Batch | Mapping[str, Array], teacher_head: Float[Array, "V E"] | None) -> Signal:
    """Returns the signal that rides in a batch.

    Args:
      teacher_head: the weight of the teacher's output head, which the signal ``hidden`` needs.

    Raises:
      ValueError: the batch holds no signal, or hidden states come without their head.
    """
    if IDS in batch:
        return TopK(batch[IDS], batch[LOG_PROBS], batch[TAIL])
    if STATES not in batch:
        raise ValueError(f"the batch holds neither {STATES} nor {IDS}; give it the signal of a teacher.")
    if teacher_head is None:
        raise ValueError(f"the batch holds {STATES}, but the weight of the teacher's head is not given.")
    return Hidden(batch[STATES], teacher_head)
