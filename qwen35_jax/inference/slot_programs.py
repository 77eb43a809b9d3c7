"""The compiled programs of an engine: a chunk of some prompts, and a loop of steps over the windows of all slots.

Letters: ``B`` slots, ``R`` rows of a chunk (one slot each), ``C`` tokens of a chunk, ``k`` drafts, ``T = k + 1`` tokens
of a window, ``M`` pages a slot may have, ``D`` model width, ``V`` vocabulary, ``W`` tokens that a call can write.
"""

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float32, Int

from qwen35_jax.config import TextConfig
from qwen35_jax.inference.slot_sampling import PROMPT, adjust, log_probabilities
from qwen35_jax.inference.slots import LENGTH, RUNNING, STOP, Slots
from qwen35_jax.inference.verification import Drafts, draw_draft, verify
from qwen35_jax.model import Qwen35
from qwen35_jax.state import PagedKeyValues, PagedState, SlotDelta, empty_layers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """What the model remembers of all slots: its layers, and the MTP head's keys and values if it drafts."""

    layers: tuple[SlotDelta | PagedKeyValues, ...]
    mtp: PagedKeyValues | None

    @classmethod
    def empty(
        cls, config: TextConfig, *, slots: int, num_drafts: int, num_pages: int, page_size: int, dtype: DTypeLike
    ) -> "Memory":
        """Makes the memory of an engine; ``num_pages`` with page 0, which is nobody's."""
        layers = empty_layers(
            config, slots=slots, window=num_drafts + 1, num_pages=num_pages, page_size=page_size, dtype=dtype
        )
        mtp = PagedKeyValues.empty(config, num_pages, page_size, dtype, num_layers=1) if num_drafts else None
        return cls(layers, mtp)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Written:
    """What a call of ``decode`` wrote.

    Attributes:
      tokens: the new tokens of each slot, ``counts`` of them.
      model_logprobs: their log-probabilities by the model itself.
      sampling_logprobs: those by what they were drawn from.
      proposed, accepted: drafts of each step that counted, and those that were accepted.
      steps: steps taken.
    """

    tokens: Int[Array, "B W"]
    model_logprobs: Float32[Array, "B W"]
    sampling_logprobs: Float32[Array, "B W"]
    counts: Int[Array, " B"]
    proposed: Int[Array, "B steps"]
    accepted: Int[Array, "B steps"]
    steps: Int[Array, ""]

    @classmethod
    def empty(cls, slots: int, most_steps: int, window: int) -> "Written":
        """Makes room for ``most_steps`` steps."""
        tokens = jnp.zeros((slots, most_steps * window), jnp.int32)
        numbers, steps = tokens.astype(jnp.float32), jnp.zeros((slots, most_steps), jnp.int32)
        zero = jnp.zeros((), jnp.int32)
        return cls(tokens, numbers, numbers, jnp.zeros(slots, jnp.int32), steps, steps, zero)


@functools.partial(jax.jit, static_argnames="graph", donate_argnames=("memory", "seen"))
def prefill(
    graph: nnx.GraphDef,
    weights: nnx.State,
    memory: Memory,
    seen: Int[Array, "B V"],
    slots: Int[Array, " R"],
    ids: Int[Array, "R C"],
    next_ids: Int[Array, "R C"],
    segment_ids: Int[Array, "R C"],
    table: Int[Array, "R M"],
    lengths: Int[Array, " R"],
) -> tuple[Memory, Int[Array, "B V"]]:
    """Reads one chunk of some prompts. A chunk from position 0 forgets what the slot held before.

    Args:
      seen: as in ``Slots``.
      slots: the slot of each row; -1 for a row without one.
      next_ids: the token after each, which the MTP head reads.
      segment_ids: 1 for tokens, then 0 for padding.
      lengths: tokens of the slot before this chunk.
    """
    model = nnx.merge(graph, weights)
    begins = lengths == 0
    taken = tuple(_from_zero(x.take(slots), begins) if isinstance(x, SlotDelta) else x for x in memory.layers)
    none = jnp.zeros_like(lengths)
    hidden, state = model.forward(ids, segment_ids, state=PagedState(taken, table, lengths, none))
    layers = tuple(
        old.put(slots, new) if isinstance(old, SlotDelta) else new
        for old, new in zip(memory.layers, state.layers, strict=True)
    )
    mtp = memory.mtp
    if mtp is not None:
        _, drafting = model.draft_forward(hidden, next_ids, segment_ids, PagedState((mtp,), table, lengths, none))
        (mtp,) = drafting.layers
    places = jnp.where(slots < 0, seen.shape[0], slots)
    kept = jnp.where(begins[:, None], 0, seen.at[slots].get(mode="clip"))
    rows = jnp.arange(slots.shape[0])[:, None]
    for tokens in (ids, next_ids):
        kept = kept.at[rows, jnp.where(segment_ids > 0, tokens, seen.shape[1])].max(PROMPT, mode="drop")
    return Memory(layers, mtp), seen.at[places].set(kept, mode="drop")


def _from_zero(states, begins: Bool[Array, " R"]):
    """Zeroes the states of slots that begin; what they held may be anything."""
    return jax.tree.map(lambda x: jnp.where(begins.reshape(1, -1, *(1,) * (x.ndim - 2)), 0, x), states)


@functools.partial(jax.jit, static_argnames=("graph", "marks", "most_steps"), donate_argnames=("memory", "slots"))
def decode(
    graph: nnx.GraphDef,
    weights: nnx.State,
    memory: Memory,
    slots: Slots,
    table: Int[Array, "B M"],
    steps: Int[Array, ""] | int,
    leave_early: Bool[Array, ""] | bool,
    *,
    marks: tuple[int, int],
    most_steps: int,
) -> tuple[Memory, Slots, Written]:
    """Takes ``steps`` steps, fewer if no slot writes any more or, with ``leave_early``, as soon as one stops.

    Args:
      table: pages of each slot, enough for ``steps`` windows.
      marks: ids of ``<think>`` and ``</think>``.
      most_steps: room for this many steps.
    """
    model = nnx.merge(graph, weights)
    running = slots.active

    def goes_on(carry):
        _, slots, written = carry
        return (written.steps < steps) & jnp.any(slots.active) & ~(leave_early & jnp.any(running & ~slots.active))

    def step(carry):
        memory, slots, written = carry
        return _step(model, memory, slots, written, table, marks)

    window = slots.drafts.tokens.shape[1] + 1
    written = Written.empty(slots.token.shape[0], most_steps, window)
    return lax.while_loop(goes_on, step, (memory, slots, written))


def _step(
    model: Qwen35, memory: Memory, slots: Slots, written: Written, table: Int[Array, "B M"], marks: tuple[int, int]
) -> tuple[Memory, Slots, Written]:
    table = jnp.where(slots.active[:, None], table, 0)
    window = jnp.concatenate([slots.token[:, None], slots.drafts.tokens], axis=1)
    hidden, state = model.forward(window, state=PagedState(memory.layers, table, slots.length, slots.num_past))
    raw = model.head_logits(hidden)
    forced = _forced(slots, marks)
    positions = slots.length[:, None] + 1 + jnp.arange(window.shape[1])
    verified = verify(
        adjust(raw, slots.settings, slots.seen, slots.drafts.tokens),
        slots.drafts, forced, slots.settings, slots.seeds, positions,
    )  # fmt: skip
    model_logprobs, _, _ = log_probabilities(raw, verified.tokens, 0)
    after, emitted = _advance(slots, verified.tokens, verified.count, marks)
    written = _write(written, slots, verified, model_logprobs, emitted)
    memory = dataclasses.replace(memory, layers=state.layers)
    if memory.mtp is not None:
        memory, drafts = _draft(model, memory.mtp, memory, slots, after, hidden, verified.tokens, verified.count, table)
        after = dataclasses.replace(after, drafts=drafts)
    return memory, after, written


def _forced(slots: Slots, marks: tuple[int, int]) -> Int[Array, "B T"]:
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


def _advance(
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


def _write(
    written: Written, slots: Slots, verified, model_logprobs: Float32[Array, "B T"], emitted: Int[Array, " B"]
) -> Written:
    """Adds a window's tokens to those of the call."""
    B, T = verified.tokens.shape
    rows, columns = jnp.arange(B)[:, None], jnp.arange(T)
    places = jnp.where(columns < emitted[:, None], written.counts[:, None] + columns, written.tokens.shape[1])

    def put(array, values):
        return array.at[rows, places].set(values, mode="drop")

    proposed = jnp.where(slots.active, slots.drafts.valid, 0)
    return Written(
        tokens=put(written.tokens, verified.tokens),
        model_logprobs=put(written.model_logprobs, model_logprobs),
        sampling_logprobs=put(written.sampling_logprobs, verified.sampling_logprobs),
        counts=written.counts + emitted,
        proposed=written.proposed.at[:, written.steps].set(proposed),
        accepted=written.accepted.at[:, written.steps].set(jnp.where(slots.active, verified.count, 0)),
        steps=written.steps + 1,
    )


def _draft(
    model: Qwen35, mtp: PagedKeyValues, memory: Memory, before: Slots, after: Slots, hidden, tokens, accepted, table
) -> tuple[Memory, Drafts]:
    """Reads the window's true tokens with the MTP head and draws the next drafts, each from the one before.

    ``accepted + 1`` drafts count next time: a slot whose drafts are rejected asks for fewer.
    """
    num_drafts = before.drafts.tokens.shape[1]
    state = PagedState((mtp,), table, before.length, before.num_past)
    ahead, state = model.draft_forward(hidden, tokens, None, state)
    vector = jnp.take_along_axis(ahead, accepted[:, None, None], axis=1)
    # The newest token stands at this position; the drafts come after it.
    newest = before.length + 1 + accepted
    drawn = []
    for j in range(num_drafts):
        if j:
            state = dataclasses.replace(state, lengths=newest + j - 1)
            vector, state = model.draft_forward(vector, drawn[-1][0][:, None], None, state)
        logits = model.head_logits(vector[:, 0])
        drawn.append(draw_draft(logits, after.settings, after.seeds, newest + 1 + j))
    tokens, ids, probs = (jnp.stack(parts, axis=1) for parts in zip(*drawn, strict=True))
    valid = jnp.minimum(accepted + 1, num_drafts)
    (keys_values,) = state.layers
    assert isinstance(keys_values, PagedKeyValues)
    return dataclasses.replace(memory, mtp=keys_values), Drafts(tokens, ids, probs, valid)
