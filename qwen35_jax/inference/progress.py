"""How the slots move on with each token: think blocks, budgets, ends and limits, on the device.

Letters: ``B`` slots, ``T`` tokens of a window.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from qwen35_jax.inference.slots import LENGTH, RUNNING, STOP, Slots


def forced_tokens(slots: Slots, marks: tuple[int, int]) -> Int[Array, "B T"]:
    """Returns the token that a budget forces at each place of the window, -1 where it forces none."""
    forced, here = [], slots
    for i in range(slots.drafts.tokens.shape[1] + 1):
        if i:
            here = _told(here, slots.drafts.tokens[:, i - 1], jnp.ones_like(slots.active), marks)
        place = jnp.clip(here.closed, 0, here.closing.shape[1] - 1)
        token = jnp.take_along_axis(here.closing, place[:, None], axis=1)[:, 0]
        forced.append(jnp.where(_closes(here), token, -1))
    return jnp.stack(forced, axis=1)


def _closes(slots: Slots) -> Bool[Array, " B"]:
    """Whether the next token is one that closes the think block."""
    due = slots.thinking & (slots.budget >= 0) & (slots.thought >= slots.budget) & (slots.closed < 0)
    return due | ((slots.closed >= 0) & (slots.closed < slots.num_closing))


def _told(slots: Slots, token: Int[Array, " B"], happened: Bool[Array, " B"], marks: tuple[int, int]) -> Slots:
    """Returns the progress after one more token of the slots where it ``happened``."""
    opening, closing = marks
    closes = _closes(slots) & happened
    opened = slots.thinking | ((token == opening) & (slots.generated == 0))
    inside = slots.thinking & (token != closing)
    return dataclasses.replace(
        slots,
        token=jnp.where(happened, token, slots.token),
        generated=slots.generated + happened,
        thinking=jnp.where(happened, opened & (token != closing), slots.thinking),
        thought=slots.thought + (happened & inside),
        closed=jnp.where(closes, jnp.maximum(slots.closed, 0) + 1, slots.closed),
    )


def advance(
    slots: Slots, tokens: Int[Array, "B T"], accepted: Int[Array, " B"], marks: tuple[int, int]
) -> tuple[Slots, Int[Array, " B"]]:
    """Returns the slots after a window, and how many tokens each has written: up to its first end."""
    here, emitted = slots, jnp.zeros_like(slots.token)
    rows = jnp.arange(tokens.shape[0])
    for i in range(tokens.shape[1]):
        token, happens = tokens[:, i], here.active & (i <= accepted)
        here, emitted = _told(here, token, happens, marks), emitted + happens
        seen = here.seen.at[rows, token].add(happens.astype(jnp.int32))
        ends = happens & jnp.any(token[:, None] == here.end_tokens, axis=1)
        full = happens & ~ends & (here.generated >= here.limit)
        stopped = jnp.where(ends, STOP, jnp.where(full, LENGTH, here.stopped))
        here = dataclasses.replace(here, seen=seen, stopped=stopped, active=here.active & (stopped == RUNNING))
    return dataclasses.replace(here, length=slots.length + emitted, num_past=emitted), emitted
