"""What an engine knows of its slots on the device: the settings and the progress of each request, as arrays by slot.

No setting is part of a program, so none ever compiles one.

Letters: ``B`` slots, ``k`` drafts of a window, ``V`` vocabulary, ``E`` end tokens, ``F`` tokens that close a think
block.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from qwen35_jax.inference.distribution import CANDIDATES, PROMPT, Settings
from qwen35_jax.inference.prompts import media_of
from qwen35_jax.inference.sampling import MAX_STOP_TOKENS, SamplingParams
from qwen35_jax.inference.verification import Drafts
from qwen35_jax.sharding import constrain

MAX_END_TOKENS = MAX_STOP_TOKENS + 2
MAX_CLOSING_TOKENS = 128
"""Room for the model's own sentence that ends a thought early, also by a tokenizer of single bytes."""

# Why a slot has stopped.
RUNNING, STOP, LENGTH = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """The requests of all slots.

    Attributes:
      settings: how tokens are chosen.
      seeds: high and low half of each seed.
      end_tokens: what ends a completion; -1 where there are fewer.
      limit: most tokens of the completion.
      budget: most tokens of the think block before it is closed; -1 for no budget.
      closing: the tokens that close it then; ``num_closing`` of them.
      tells: whether log-probabilities are told with each token.
      tells_top: whether the model's most likely tokens are told with it.
      active: slots that write. A slot that has stopped keeps its place until the host has seen it.
      stopped: why it does not write any more.
      token: the newest token, not yet in the memory.
      length: tokens in the memory, those of the last window that were accepted included.
      offset: position of a new token less the number of tokens before it.
      num_past: how many of them the DeltaNet states still lack.
      generated: tokens of the completion.
      thinking: whether the newest token is inside a think block.
      thought: tokens of the think block so far.
      closed: how many closing tokens are written, -1 before the first one.
      drafts: what the MTP head proposes to come after ``token``.
      seen: which tokens prompt and completion hold (``distribution.adjust``).
    """

    settings: Settings
    seeds: UInt32[Array, "B 2"]
    end_tokens: Int[Array, "B E"]
    limit: Int[Array, " B"]
    budget: Int[Array, " B"]
    closing: Int[Array, "B F"]
    num_closing: Int[Array, " B"]
    tells: Bool[Array, " B"]
    tells_top: Bool[Array, " B"]
    active: Bool[Array, " B"]
    stopped: Int[Array, " B"]
    token: Int[Array, " B"]
    length: Int[Array, " B"]
    offset: Int[Array, " B"]
    num_past: Int[Array, " B"]
    generated: Int[Array, " B"]
    thinking: Bool[Array, " B"]
    thought: Int[Array, " B"]
    closed: Int[Array, " B"]
    drafts: Drafts
    seen: Int[Array, "B V"]

    @classmethod
    def empty(cls, slots: int, num_drafts: int, vocab_size: int) -> "Slots":
        """Makes slots without requests."""
        zeros, candidates = jnp.zeros(slots, jnp.int32), min(CANDIDATES, vocab_size)
        nobody = jnp.zeros(slots, bool)
        empty = cls(
            settings=Settings.empty(slots),
            seeds=jnp.zeros((slots, 2), jnp.uint32),
            end_tokens=jnp.full((slots, MAX_END_TOKENS), -1, jnp.int32),
            limit=zeros, budget=zeros - 1, closing=jnp.zeros((slots, MAX_CLOSING_TOKENS), jnp.int32), num_closing=zeros,
            tells=nobody, tells_top=nobody, active=nobody, stopped=zeros,
            token=zeros, length=zeros, offset=zeros, num_past=zeros, generated=zeros,
            thinking=nobody, thought=zeros, closed=zeros - 1,
            drafts=Drafts(
                tokens=jnp.zeros((slots, num_drafts), jnp.int32),
                ids=jnp.zeros((slots, num_drafts, candidates), jnp.int32),
                probs=jnp.zeros((slots, num_drafts, candidates), jnp.float32),
                valid=zeros,
            ),
            seen=jnp.zeros((slots, vocab_size), jnp.int32),
        )  # fmt: skip
        return empty.split()

    def split(self) -> "Slots":
        """Splits the slots over the devices that share out a batch."""
        return jax.tree.map(lambda x: constrain(x, ("batch", *[None] * (x.ndim - 1))), self)


def row_of(
    prompt: Sequence[int],
    sampling: SamplingParams,
    *,
    limit: int,
    seed: int,
    end_tokens: Sequence[int],
    thinking: bool,
    closing: Sequence[int],
) -> dict[str, Any]:
    """Returns what a request makes of a slot's row of ``Slots``, by name: all but memory, drafts and ``seen``.

    Args:
      limit: most new tokens.
      end_tokens: what ends the completion, at most ``MAX_END_TOKENS``.
      thinking: whether the prompt leaves a think block open.
      closing: the tokens that close it when the budget is spent, at most ``MAX_CLOSING_TOKENS``.
    """
    ends, closes = np.full(MAX_END_TOKENS, -1, np.int32), np.zeros(MAX_CLOSING_TOKENS, np.int32)
    ends[: len(end_tokens)], closes[: len(closing)] = end_tokens, closing
    seed %= 1 << 64
    media = media_of(prompt)
    offset = 0 if media is None else media.offset
    budget = -1 if sampling.thinking_budget is None else sampling.thinking_budget
    numbers = {
        "limit": limit, "budget": budget, "num_closing": len(closing),
        "token": prompt[-1], "length": len(prompt) - 1, "offset": offset, "stopped": RUNNING, "num_past": 0,
        "generated": 0, "thought": 0, "closed": -1,
    }  # fmt: skip
    return {name: np.int32(value) for name, value in numbers.items()} | {
        "settings": Settings.row(sampling), "seeds": np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32),
        "end_tokens": ends, "closing": closes, "active": np.bool_(True), "thinking": np.bool_(thinking),
        "tells": np.bool_(sampling.logprobs is not None), "tells_top": np.bool_(bool(sampling.logprobs)),
    }  # fmt: skip


@functools.partial(jax.jit, donate_argnames="slots")
def admit(slots: Slots, slot: Int[Array, ""] | int, row: dict[str, Any]) -> Slots:
    """Puts a request, as ``row_of`` gives it, into a slot; it has no drafts yet. ``seen`` is the prefill's."""
    old = {name: getattr(slots, name) for name in row}
    new = jax.tree.map(lambda array, value: array.at[slot].set(value), old, row)
    drafts = dataclasses.replace(slots.drafts, valid=slots.drafts.valid.at[slot].set(0))
    seen = slots.seen.at[slot, row["token"]].max(PROMPT)
    return dataclasses.replace(slots, drafts=drafts, seen=seen, **new).split()


@functools.partial(jax.jit, donate_argnames="slots")
def release(slots: Slots, slot: Int[Array, ""] | int) -> Slots:
    """Stops a slot's request where it is."""
    return dataclasses.replace(slots, active=slots.active.at[slot].set(False)).split()
