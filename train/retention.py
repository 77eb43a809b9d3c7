"""Which checkpoints of a run stay."""

from collections.abc import Mapping, Sequence

from qwen35_jax.best import choose_best


def steps_to_keep(
    steps: Sequence[int], *, keep: int, keep_every: int | None = None, scores: Mapping[int, float] | None = None
) -> set[int]:
    """Returns those of the saved steps that stay: the newest, multiples of a number of steps, and the best.

    Args:
      steps: in ascending order.
      keep: how many of the newest.
      keep_every: its multiples stay for ever.
      scores: of the steps that were evaluated; the lowest is the best.
    """
    stay = {*steps[-keep:], *(step for step in steps if keep_every is not None and step % keep_every == 0)}
    best = choose_best(scores or {}, steps)
    return stay if best is None else stay | {best}
