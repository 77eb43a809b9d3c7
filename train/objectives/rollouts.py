"""The settings of rollouts: answers that the student samples, to be taught on its own words."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import jax.numpy as jnp

from train.batch import Field, Fields


@dataclass(frozen=True)
class RolloutConfig:
    """Which answers are sampled, and how."""

    fraction: float = 1.0
    """Share of the sequences of a batch that hold rollouts; the others hold documents of the data."""
    answers: int = 4
    """Answers to each prompt; the prompt is read once for all of them."""
    max_new_tokens: int = 1024
    """Most tokens of an answer. One that is cut keeps its tokens and gets no end token."""
    max_prompt_tokens: int = 1024
    """Longer prompts are left out and counted."""
    mode: Literal["default", "thinking", "non_thinking"] = "default"
    """Whether the student reasons first; ``default``: as its chat template decides."""
    temperature: float = 1.0
    """Divides the logits that tokens are sampled from."""
    top_p: float = 1.0
    """Samples from the most likely tokens that have this mass together; 1 from all."""
    top_k: int = 0
    """Samples from so many most likely tokens; 0 from all."""
    min_p: float = 0.0
    """Samples from tokens that are at least so likely, relative to the most likely one; 0 from all."""
    refresh: int = 1
    """Batches that are sampled with the same weights."""
    slots: int = 64
    """Answers that are written at the same time."""
    cache_tokens: int | None = None
    """Tokens that the engine remembers; by default as many as the slots may need."""
    speculative_tokens: int = 0
    """Drafts of the MTP head a step; what is sampled has the same distribution."""

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"rollouts.fraction={self.fraction} is no share of a batch; give more than 0, at most 1.")
        least = {"answers": 1, "max_new_tokens": 1, "max_prompt_tokens": 1, "refresh": 1, "slots": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"rollouts.{name}={getattr(self, name)} must be at least {value}.")
        if self.temperature <= 0:
            raise ValueError(
                f"rollouts.temperature={self.temperature} samples nothing: the student would be taught on its most "
                "likely tokens alone; give a positive temperature, such as 1."
            )

    @property
    def samples_student(self) -> bool:
        """Whether tokens are drawn from the student's own distribution, as it is."""
        return (self.temperature, self.top_p, self.top_k, self.min_p) == (1, 1, 0, 0)


ROLLOUT_FIELDS: Fields = MappingProxyType({"labelled": Field(jnp.bool_), "sampled_log_probs": Field(jnp.float32)})
"""What rollouts add to a batch: whether a token is from the data, and the engine's log-probability of a sampled one."""
