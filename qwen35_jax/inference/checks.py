"""Refuses requests that an engine could never finish, before anything is computed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen35_jax.config import ModelConfig, TextConfig
from qwen35_jax.inference.prompts import media_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.inference.slots import MAX_CLOSING_TOKENS, MAX_END_TOKENS


def check_prompt(name: str, prompt: Sequence[int], num_new: int, text: TextConfig, *, max_length: int) -> None:
    """Raises ``ValueError`` for a prompt that cannot be completed with ``num_new`` tokens."""
    _check_tokens(name, prompt, text.vocab_size)
    _check_length(name, len(prompt), num_new, positions=text.max_position_embeddings, max_length=max_length)


def _check_tokens(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    """Raises ``ValueError`` for a text without tokens, or with some that the model does not know."""
    if not len(tokens):
        raise ValueError(f"{name} has no tokens; a completion needs at least one to follow.")
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        raise ValueError(
            f"{name} has token ids from {min(tokens)} to {max(tokens)}, but the model knows 0 to {vocab_size - 1}; "
            "use the tokenizer of the checkpoint."
        )


def _check_length(name: str, num_tokens: int, num_new: int, *, positions: int, max_length: int) -> None:
    """Raises ``ValueError`` for more tokens than the model has positions, or than the engine's pages hold."""
    if num_new < 1:
        raise ValueError(f"max_new_tokens={num_new}; give at least 1.")
    if num_tokens + num_new <= max_length:
        return
    begins = f"{name} has {num_tokens} tokens; with max_new_tokens={num_new} it passes the"
    if max_length == positions:
        raise ValueError(f"{begins} model's {positions} positions; shorten it or lower max_new_tokens.")
    raise ValueError(
        f"{begins} {max_length} tokens that the engine's pages hold; shorten it, lower max_new_tokens, or raise "
        "cache_tokens."
    )


def check_scored(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], config: ModelConfig, *, max_length: int) -> None:
    """Raises ``ValueError`` for a prompt and its continuation, by their place, that cannot be scored."""
    text, pads = config.text, {config.image_token_id, config.video_token_id}
    for number, (prompt, continuation) in enumerate(pairs):
        _check_tokens(f"continuation {number}", continuation, text.vocab_size)
        check_prompt(f"prompt {number}", prompt, len(continuation), text, max_length=max_length)
        if media_of(prompt) is not None and pads & set(continuation):
            raise ValueError(f"continuation {number} has pads of images or videos; these belong to the prompt.")


def check_sampling(
    sampling: SamplingParams, vocab_size: int, *, end_tokens: Sequence[int], closing: Sequence[int]
) -> None:
    """Raises ``ValueError`` for settings that do not fit the model or its tokenizer.

    Args:
      end_tokens: what ends a completion.
      closing: what closes a think block when the budget is spent.
    """
    for name, ids in (("logit_bias", dict(sampling.logit_bias)), ("stop_token_ids", sampling.stop_token_ids)):
        wrong = [token for token in ids if not 0 <= token < vocab_size]
        if wrong:
            raise ValueError(f"{name} names token {wrong[0]}, but the model knows 0 to {vocab_size - 1}.")
    if len(end_tokens) > MAX_END_TOKENS:
        raise ValueError(f"{len(end_tokens)} tokens would end the completion; name at most {MAX_END_TOKENS}.")
    if sampling.thinking_budget is not None and len(closing) > MAX_CLOSING_TOKENS:
        raise ValueError(
            f"the sentence that closes a think block has {len(closing)} tokens by this tokenizer, more than "
            f"{MAX_CLOSING_TOKENS}; use budget_close='hard'."
        )


def one_each(name: str, value: Any, count: int) -> list[Any]:
    """Returns a value for each of ``count`` prompts: the same for all, or those of a list.

    Raises:
      ValueError: the list is shorter or longer.
    """
    if not isinstance(value, Sequence | np.ndarray):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} prompts; give one a prompt, or one for all.")
    return list(value)
