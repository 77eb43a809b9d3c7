"""The settings of rollouts: answers that the model in training samples itself, and that it is then trained on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

import jax.numpy as jnp

from qwen35_jax.config import TextConfig
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.sharding import MeshConfig
from train.batch import Field, Fields
from train.objectives.checks import check_choices, check_finite

Mode = Literal["default", "thinking", "non_thinking"]

OF_ROLLOUTS = "rollout_"
"""What the figures of rollouts begin with; those of held-out prompts have ``eval_`` before it."""

ROLLOUT_FIELDS: Fields = MappingProxyType({"labelled": Field(jnp.bool_), "sampled_log_probs": Field(jnp.float32)})
"""What rollouts add to a batch: ``labelled[t]`` says that token t is from the data; ``sampled_log_probs[t]`` is the
log-probability of a sampled token t by the model that sampled it, and 0 for other tokens."""


@runtime_checkable
class BatchSizes(Protocol):
    """What the settings of the data say about batches."""

    @property
    def sequence_length(self) -> int: ...

    @property
    def sequences_per_batch(self) -> int: ...

    @property
    def shards(self) -> int: ...

    @property
    def epochs(self) -> int | None: ...


@dataclass(frozen=True)
class RolloutConfig:
    """How the model in training answers the prompts of the data. A prompt is a conversation up to its last answer."""

    fraction: float = 1.0
    """Share of the sequences of every batch that hold rollouts; the others hold the data's own documents."""
    answers: int = 4
    """Answers sampled for each prompt. They share the reading of it, and are in the same batch."""
    max_new_tokens: int = 1024
    """Most tokens of an answer. One that is cut off here keeps its tokens and gets no end token."""
    max_prompt_tokens: int = 1024
    """Longer prompts are left out and counted."""
    mode: Mode = "default"
    """Thinking mode of the prompts; ``default`` is that of the checkpoint's template."""
    temperature: float = 1.0
    """Temperature of the sampling, not of the divergence."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    refresh: int = 1
    """Batches that are sampled with the same weights."""
    slots: int = 64
    """Most answers that are written at once. It changes numbers, since rounding depends on it."""
    cache_tokens: int | None = field(default=None, compare=False)
    """Tokens that the engine's pages hold; by default as many as all slots may need."""
    speculative_tokens: int = 0
    """Drafts of the MTP head a step; 0 decodes plainly."""
    eval_prompts: int = field(default=64, compare=False)
    """Most prompts of the validation data that every validation answers, once each, in the order of the file; 0 for
    none."""

    def __post_init__(self):
        check_finite(self, "rollouts.")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"rollouts.fraction={self.fraction} is no share; give a number above 0 and at most 1.")
        for name in ("answers", "max_new_tokens", "max_prompt_tokens", "refresh", "slots"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollouts.{name}={getattr(self, name)} must be at least 1.")
        check_choices(self, "rollouts.")
        if self.temperature == 0:
            raise ValueError(
                "rollouts.temperature=0 samples nothing: all answers to a prompt would be its most likely one; give "
                "1, which samples the model's own distribution."
            )
        for name in ("speculative_tokens", "eval_prompts"):
            if getattr(self, name) < 0:
                raise ValueError(f"rollouts.{name}={getattr(self, name)} is negative; give 0 or more.")
        if self.cache_tokens is not None and self.cache_tokens < self.longest:
            raise ValueError(
                f"rollouts.cache_tokens={self.cache_tokens} holds no document of {self.longest} tokens "
                "(max_prompt_tokens + max_new_tokens); raise it or leave it out."
            )
        try:
            self.sampling  # noqa: B018
        except ValueError as err:
            raise ValueError(f"rollouts.{err}") from err

    @property
    def sampling(self) -> SamplingParams:
        """The settings of the engine, which tells the log-probability of every token."""
        return SamplingParams(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p, logprobs=0
        )

    @property
    def samples_student(self) -> bool:
        """Whether tokens are drawn from the model's own distribution, as it is."""
        return (self.temperature, self.top_p, self.top_k, self.min_p) == (1, 1, 0, 0)

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its answer."""
        return self.max_prompt_tokens + self.max_new_tokens

    def num_sequences(self, data: BatchSizes) -> int:
        """Returns how many sequences of a batch hold rollouts."""
        return round(self.fraction * data.sequences_per_batch)

    def num_prompts(self, data: BatchSizes) -> int:
        """Returns how many prompts a batch answers: as many as certainly fit."""
        return self.num_sequences(data) * (data.sequence_length // self.longest) // self.answers

    def num_answers(self, data: BatchSizes) -> int:
        """Returns how many answers are sampled with the same weights."""
        return self.num_prompts(data) * self.answers * self.refresh

    def check_data(self, data: BatchSizes) -> None:
        """Checks that the answers fit the batches.

        Raises:
          ValueError: they do not, or the data's own documents have no whole number of sequences.
        """
        size, length = data.sequences_per_batch, data.sequence_length
        if data.epochs is not None:
            raise ValueError(
                f"data.epochs={data.epochs} counts documents of the data, but with rollouts a step takes a fixed "
                "number of prompts; say with --steps when to end."
            )
        own = self.num_sequences(data)
        if not own or abs(own - self.fraction * size) > 1e-6 * size:
            raise ValueError(
                f"rollouts.fraction={self.fraction:g} of data.sequences_per_batch={size} is no whole number of "
                f"sequences; give a multiple of 1/{size}, such as {max(own, 1) / size:g}."
            )
        if (size - own) % data.shards:
            raise ValueError(
                f"rollouts.fraction={self.fraction:g} leaves {size - own} sequences for the data, which cannot be "
                f"dealt to data.shards={data.shards}; change one of them."
            )
        given = f"rollouts.max_prompt_tokens={self.max_prompt_tokens} and rollouts.max_new_tokens={self.max_new_tokens}"
        if self.longest > length:
            raise ValueError(
                f"{given} make documents of up to {self.longest} tokens, but data.sequence_length={length}; lower "
                f"them or raise it to {self.longest}."
            )
        if not self.num_prompts(data):
            raise ValueError(
                f"the rollouts.answers={self.answers} to a prompt do not fit one batch: {given} let its {own} "
                f"sequences of {length} tokens hold {own * (length // self.longest)} documents; lower answers or "
                "lengths, or raise data.sequences_per_batch or data.sequence_length."
            )

    def check_mesh(self, mesh: MeshConfig, data: BatchSizes) -> None:
        """Checks that the mesh can generate, and that every share of a batch has sequences for the data.

        Raises:
          ValueError: it cannot, or some has none.
        """
        if mesh.context > 1:
            raise ValueError(
                f"rollouts need a mesh that does not split positions, but mesh.context={mesh.context}; set it to 1 "
                "and raise mesh.fsdp or mesh.tensor."
            )
        shares, rest = mesh.data * mesh.fsdp, data.sequences_per_batch - self.num_sequences(data)
        if 0 < rest < shares:
            raise ValueError(
                f"rollouts.fraction={self.fraction:g} leaves {rest} sequences for the data, fewer than the {shares} "
                "shares of a batch (mesh.data * mesh.fsdp); lower the fraction, or set it to 1."
            )
        if self.cache_tokens is not None and self.cache_tokens // shares < self.longest:
            raise ValueError(
                f"rollouts.cache_tokens={self.cache_tokens} is divided among the {shares} shares of a batch, and each "
                f"must hold a document of {self.longest} tokens; raise it to {shares * self.longest} or leave it out."
            )

    def check_model(self, text: TextConfig) -> None:
        """Checks that a model can write such answers.

        Raises:
          ValueError: it has too few positions, or no head to draft with.
        """
        if self.longest > text.max_position_embeddings:
            raise ValueError(
                f"rollouts.max_prompt_tokens={self.max_prompt_tokens} and rollouts.max_new_tokens="
                f"{self.max_new_tokens} pass the model's {text.max_position_embeddings} positions; lower them."
            )
        if self.speculative_tokens and not text.mtp.num_hidden_layers:
            raise ValueError(
                f"rollouts.speculative_tokens={self.speculative_tokens} needs an MTP head, which the model lacks; "
                "set it to 0."
            )
        if self.top_k > text.vocab_size:
            raise ValueError(
                f"rollouts.top_k={self.top_k}, but the model knows {text.vocab_size} tokens; give fewer, or 0 for all."
            )

    def warnings(self) -> Iterator[str]:
        """Yields what a user should know of settings that sample another distribution than the model's."""
        if self.samples_student:
            return
        neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        changed = [f"{name}={getattr(self, name):g}" for name, value in neutral.items() if getattr(self, name) != value]
        yield (
            f"rollouts.{', rollouts.'.join(changed)} samples another distribution than the model's own: the divergence "
            "stays exact at every token, but k1, the mean log-ratio of the sampled tokens, no longer estimates it"
        )
