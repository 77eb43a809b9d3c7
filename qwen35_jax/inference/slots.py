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

from qwen35_jax.inference.slot_sampling import CANDIDATES, PROMPT, Settings
from qwen35_jax.inference.verification import Drafts

MAX_END_TOKENS = 16
MAX_CLOSING_TOKENS = 64
"""Room for the model's own sentence that ends a thought early, with ``</think>``."""

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
      active: slots that write. A slot that has stopped keeps its place until the host has seen it.
      stopped: why it does not write any more.
      token: the newest token, not yet in the memory.
      length: tokens in the memory, those of the last window that were accepted included.
      num_past: how many of them the DeltaNet states still lack.
      generated: tokens of the completion.
      thinking: whether the newest token is inside a think block.
      thought: tokens of the think block so far.
      closed: how many closing tokens are written, -1 before the first one.
      drafts: what the MTP head proposes to come after ``token``.
      seen: which tokens prompt and completion hold (``slot_sampling.adjust``).
    """

    settings: Settings
    seeds: UInt32[Array, "B 2"]
    end_tokens: Int[Array, "B E"]
    limit: Int[Array, " B"]
    budget: Int[Array, " B"]
    closing: Int[Array, "B F"]
    num_closing: Int[Array, " B"]
    active: Bool[Array, " B"]
    stopped: Int[Array, " B"]
    token: Int[Array, " B"]
    length: Int[Array, " B"]
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
            active=nobody, stopped=zeros, token=zeros, length=zeros, num_past=zeros, generated=zeros,
            thinking=nobody, thought=zeros, closed=zeros - 1,
            drafts=Drafts(
                tokens=jnp.zeros((slots, num_drafts), jnp.int32),
                ids=jnp.zeros((slots, num_drafts, candidates), jnp.int32),
                probs=jnp.zeros((slots, num_drafts, candidates), jnp.float32),
                valid=zeros,
            ),
            seen=jnp.zeros((slots, vocab_size), jnp.int32),
        )  # fmt: skip
        # Programs take the arrays over, so each needs memory of its own.
        return jax.tree.map(jnp.copy, empty)


@dataclass(frozen=True)
class SlotRequest:
    """One prompt and how it is to be completed.

    Attributes:
      prompt: token ids, at least one.
      settings: how tokens are chosen (``Settings.row``).
      limit: most new tokens.
      seed: of the random choices; the result depends on nothing else.
      end_tokens: what ends the completion.
      thinking: whether the prompt leaves a think block open.
      budget: most tokens of the think block; -1 for no budget.
      closing: the tokens that close it when the budget is spent.
    """

    prompt: Sequence[int]
    settings: Settings
    limit: int
    seed: int = 0
    end_tokens: Sequence[int] = ()
    thinking: bool = False
    budget: int = -1
    closing: Sequence[int] = ()

    def row(self) -> dict[str, Any]:
        """Returns what the request makes of a slot's row of ``Slots``, by name: all but memory, drafts and ``seen``."""
        ends, closing = np.full(MAX_END_TOKENS, -1, np.int32), np.zeros(MAX_CLOSING_TOKENS, np.int32)
        ends[: len(self.end_tokens)], closing[: len(self.closing)] = self.end_tokens, self.closing
        seed = self.seed % (1 << 64)
        numbers = {
            "limit": self.limit, "budget": self.budget, "num_closing": len(self.closing),
            "token": self.prompt[-1], "length": len(self.prompt) - 1, "stopped": RUNNING, "num_past": 0,
            "generated": 0, "thought": 0, "closed": -1,
        }  # fmt: skip
        return {name: np.int32(value) for name, value in numbers.items()} | {
            "settings": self.settings, "seeds": np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32),
            "end_tokens": ends, "closing": closing, "active": np.bool_(True), "thinking": np.bool_(self.thinking),
        }  # fmt: skip


@functools.partial(jax.jit, donate_argnames="slots")
def admit(slots: Slots, slot: Int[Array, ""] | int, row: dict[str, Any]) -> Slots:
    """Puts a request, as ``SlotRequest.row`` gives it, into a slot; it has no drafts yet. ``seen`` is the prefill's."""
    old = {name: getattr(slots, name) for name in row}
    new = jax.tree.map(lambda array, value: array.at[slot].set(value), old, row)
    drafts = dataclasses.replace(slots.drafts, valid=slots.drafts.valid.at[slot].set(0))
    seen = slots.seen.at[slot, row["token"]].max(PROMPT)
    return dataclasses.replace(slots, drafts=drafts, seen=seen, **new)


@functools.partial(jax.jit, donate_argnames="slots")
def release(slots: Slots, slot: Int[Array, ""] | int) -> Slots:
    """Stops a slot's request where it is."""
    return dataclasses.replace(slots, active=slots.active.at[slot].set(False))
