"""The divergence of a head's distribution from what a signal tells of another one."""

from jaxtyping import Array, Float, Int

from qwen35_jax.ops.linear_cross_entropy import (
    Divergence,
    FrozenHead,
    linear_divergence,
    linear_top_k_divergence,
)
from train.objectives.heads import HeadInput
from train.objectives.terms import Terms
from train.signals.signal import Hidden, Signal


def divergence_from(
    student: HeadInput,
    signal: Signal,
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    kind: Divergence,
    chunk: int,
    beta: float | None = None,
    temperature: float = 1.0,
    groups: Int[Array, "B T"] | None = None,
    top_k: int | None = None,
    sampled: Float[Array, "B T"] | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """Returns the weighted sum of the divergence, and the sums of what comes with it (see the operations).

    The settings have been checked: a signal of the k most likely tokens allows the forward divergence alone.

    Args:
      top_k: compare the most likely tokens too: this many, or the k of a signal that holds them.
    """
    shared = {"chunk_tokens": chunk, "groups": groups, "sampled_log_probs": sampled}
    if isinstance(signal, Hidden):
        frozen = FrozenHead(signal.states, signal.head)
        more = {"kind": kind, "beta": beta, "temperature": temperature, "top_k": top_k}
        return linear_divergence(*student, frozen, targets, weights, **more, **shared)
    assert kind == "forward_kl" and temperature == 1, "the settings ask for what the signal cannot tell"
    with_overlap = top_k is not None
    return linear_top_k_divergence(*student, *signal, targets, weights, with_overlap=with_overlap, **shared)
