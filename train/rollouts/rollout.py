"""A rollout: a prompt with an answer that the model sampled, and how many of them are kept in a checkpoint.

A checkpoint holds tokens and log-probabilities, so that a run that resumes samples nothing again: what an engine
samples depends on rounding, which another machine may do otherwise.

Letters: P tokens of a prompt, A tokens of an answer.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from train.data.masking import Example


@dataclass(frozen=True)
class Rollout:
    """One answer to one prompt.

    Attributes:
      position: of the prompt's document in the order of the data.
      number: which of the answers to that prompt this is.
      answer: the generated tokens; the last one is an end token unless the answer was cut off.
      log_probs: log-probability of each of them by the model itself when it was sampled.
    """

    position: int
    number: int
    prompt: Int32[np.ndarray, " P"]
    answer: Int32[np.ndarray, " A"]
    log_probs: Float32[np.ndarray, " A"]

    def example(self) -> Example:
        """Returns the document: the prompt and the answer, of which exactly the generated tokens are trained."""
        input_ids = np.concatenate([self.prompt, self.answer])
        zeros = np.zeros(len(self.prompt), np.float32)
        signals = {"labelled": np.zeros(len(input_ids), bool),
                   "sampled_log_probs": np.concatenate([zeros, self.log_probs])}  # fmt: skip
        return Example(input_ids, np.arange(len(input_ids)) >= len(self.prompt), signals)


def to_json(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Returns the rollouts of a batch as JSON values; each prompt, whose answers are neighbours, is stored once."""
    prompts = [each for each in rollouts if each.number == 0]
    return {
        "positions": [each.position for each in prompts],
        "prompt_lengths": [len(each.prompt) for each in prompts],
        "lengths": [len(each.answer) for each in rollouts],
        "prompts": _pack([each.prompt for each in prompts], "<i4"),
        "answers": _pack([each.answer for each in rollouts], "<i4"),
        "log_probs": _pack([each.log_probs for each in rollouts], "<f4"),
    }


def from_json(stored: Mapping[str, Any]) -> list[Rollout]:
    """Returns the rollouts that ``to_json`` was given."""
    prompts = _unpack(stored["prompts"], "<i4", stored["prompt_lengths"])
    answers, log_probs = (_unpack(stored[name], kind, stored["lengths"]) for name, kind in
                          (("answers", "<i4"), ("log_probs", "<f4")))  # fmt: skip
    each = len(answers) // max(len(prompts), 1)
    return [
        Rollout(stored["positions"][place // each], place % each, prompts[place // each], *pair)
        for place, pair in enumerate(zip(answers, log_probs, strict=True))
    ]


def _pack(arrays: Sequence[np.ndarray], kind: str) -> str:
    joined = np.concatenate(arrays).astype(kind)
    return base64.b64encode(zlib.compress(joined.tobytes())).decode()


def _unpack(packed: str, kind: str, lengths: Sequence[int]) -> list[np.ndarray]:
    joined = np.frombuffer(zlib.decompress(base64.b64decode(packed)), kind)
    native = joined.astype(joined.dtype.newbyteorder("="))
    return np.split(native, np.cumsum(lengths)[:-1])
