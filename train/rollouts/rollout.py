"""A rollout: a prompt with an answer that the model sampled, and how many of them are kept in a checkpoint.

A checkpoint holds tokens and log-probabilities, so that a run that resumes samples nothing again: what an engine
samples depends on rounding, which another machine may do otherwise.

Letters: P tokens of a prompt, A tokens of an answer.
"""

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from train.data.masking import Example
from train.rollouts.prompts import Prompt


@dataclass(frozen=True)
class Rollout:
    """One answer to one prompt.

    Attributes:
      number: which of the answers to its prompt this is.
      answer: the generated tokens; the last one is an end token unless the answer was cut off.
      log_probs: log-probability of each of them by the model itself when it was sampled.
    """

    prompt: Prompt
    number: int
    answer: Int32[np.ndarray, " A"]
    log_probs: Float32[np.ndarray, " A"]

    def example(self) -> Example:
        """Returns the document: the prompt and the answer, of which exactly the generated tokens are trained."""
        prompt = self.prompt.document
        input_ids = np.concatenate([prompt.input_ids, self.answer])
        zeros = np.zeros(len(prompt), np.float32)
        signals = {"labelled": np.zeros(len(input_ids), bool),
                   "sampled_log_probs": np.concatenate([zeros, self.log_probs])}  # fmt: skip
        if "positions" in prompt.signals:
            signals["positions"] = _counted_on(prompt.signals["positions"], len(self.answer))
        return Example(input_ids, np.arange(len(input_ids)) >= len(prompt), signals, prompt.pictures)


def to_json(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Returns the rollouts of a batch as JSON values; each prompt, whose answers are neighbours, is stored once.

    Images and videos are not stored: the row of the prompt has them.
    """
    prompts = [each.prompt for each in rollouts if each.number == 0]
    return {
        "positions": [prompt.position for prompt in prompts],
        "prompt_lengths": [len(prompt.token_ids) for prompt in prompts],
        "lengths": [len(each.answer) for each in rollouts],
        "prompts": _pack([prompt.token_ids for prompt in prompts], "<i4"),
        "answers": _pack([each.answer for each in rollouts], "<i4"),
        "log_probs": _pack([each.log_probs for each in rollouts], "<f4"),
    }


def from_json(stored: Mapping[str, Any], prompt_of: Callable[[int, Int32[np.ndarray, " P"]], Prompt]) -> list[Rollout]:
    """Returns the rollouts that ``to_json`` was given.

    Args:
      prompt_of: returns the prompt of a position, whose tokens are known.
    """
    token_ids = _unpack(stored["prompts"], "<i4", stored["prompt_lengths"])
    prompts = [prompt_of(*each) for each in zip(stored["positions"], token_ids, strict=True)]
    answers, log_probs = (_unpack(stored[name], kind, stored["lengths"]) for name, kind in
                          (("answers", "<i4"), ("log_probs", "<f4")))  # fmt: skip
    each = len(answers) // max(len(prompts), 1)
    return [
        Rollout(prompts[place // each], place % each, *pair)
        for place, pair in enumerate(zip(answers, log_probs, strict=True))
    ]


def _counted_on(positions: Int32[np.ndarray, "P 3"], count: int) -> Int32[np.ndarray, "_ 3"]:
    """Returns the positions of a prompt and of so many tokens of text after it."""
    after = positions.max() + 1 + np.arange(count, dtype=np.int32)
    return np.concatenate([positions, np.repeat(after[:, None], 3, axis=1)])


def _pack(arrays: Sequence[np.ndarray], kind: str) -> str:
    joined = np.concatenate(arrays).astype(kind)
    return base64.b64encode(zlib.compress(joined.tobytes())).decode()


def _unpack(packed: str, kind: str, lengths: Sequence[int]) -> list[np.ndarray]:
    joined = np.frombuffer(zlib.decompress(base64.b64decode(packed)), kind)
    native = joined.astype(joined.dtype.newbyteorder("="))
    return np.split(native, np.cumsum(lengths)[:-1])
