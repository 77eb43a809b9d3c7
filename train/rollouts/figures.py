"""What the metrics tell of the rollouts of a step."""

from collections.abc import Sequence

import numpy as np

from qwen35_jax.processing import Tokenizer
from qwen35_jax.processing.tokenizer import END_OF_TEXT, END_OF_TURN
from train.rollouts.rollout import Rollout

Figures = dict[str, float | int | None]

_GRAM = 4


def figures_of(rollouts: Sequence[Rollout], tokenizer: Tokenizer, *, staleness: int, seconds: float) -> Figures:
    """Returns the figures of the answers in a batch; shares are of the answers.

    ``rollout_distinct`` is the share of distinct ones among all runs of four tokens, over all answers: it falls when
    answers repeat themselves or each other. It is None if no answer has four tokens.

    Args:
      staleness: steps since the weights that the answers were sampled with.
      seconds: time that sampling took in this step, 0 if the answers were there.
    """
    lengths = np.array([len(each.answer) for each in rollouts])
    last = np.array([each.answer[-1] for each in rollouts])
    turn, text = (last == tokenizer.token_id(end) for end in (END_OF_TURN, END_OF_TEXT))
    return {
        "rollout_length_mean": float(lengths.mean()),
        "rollout_length_max": int(lengths.max()),
        "rollout_truncated": float((~(turn | text)).mean()),
        "rollout_end_of_turn": float(turn.mean()),
        "rollout_end_of_text": float(text.mean()),
        "rollout_distinct": _distinct(rollouts),
        "rollout_staleness": staleness,
        "rollout_seconds": seconds,
    }


def _distinct(rollouts: Sequence[Rollout]) -> float | None:
    windows = [
        np.lib.stride_tricks.sliding_window_view(each.answer, _GRAM) for each in rollouts if len(each.answer) >= _GRAM
    ]
    if not windows:
        return None
    grams = np.concatenate(windows)
    return len(np.unique(grams, axis=0)) / len(grams)
