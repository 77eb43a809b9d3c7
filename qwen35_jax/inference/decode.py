"""The compiled program that writes: a loop of steps, each over the windows of all slots.

Letters: ``B`` slots, ``k`` drafts, ``T = k + 1`` tokens of a window, ``M`` pages a slot may have, ``V`` vocabulary,
``D`` model width, ``W`` tokens that a call can write, ``S`` steps it can take, ``L`` likely tokens that are told.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int

from qwen35_jax.inference.distribution import Masks, log_probabilities
from qwen35_jax.inference.memory import Memory
from qwen35_jax.inference.progress import advance, forced_tokens
from qwen35_jax.inference.sampling import MAX_LOGPROBS
from qwen35_jax.inference.slots import Slots
from qwen35_jax.inference.verification import Drafts, Verified, draw_draft, verify
from qwen35_jax.model import Qwen35
from qwen35_jax.state import PagedKeyValues, PagedState


class Order(NamedTuple):
    """What the host asks of a call.

    Attributes:
      table: pages of each slot, enough for ``steps`` windows.
      steps: most steps.
      running: slots that write, as far as the host knows.
      leave_early: end as soon as one of these has stopped.
      masks: for slots that have a grammar; a call with any takes one step.
    """

    table: Int[Array, "B M"]
    steps: Int[Array, ""] | int
    running: Bool[Array, " B"]
    leave_early: Bool[Array, ""] | bool
    masks: Masks


class Program(NamedTuple):
    """What the program of an engine is compiled for.

    Attributes:
      marks: ids of ``<think>`` and ``</think>``.
      most_steps: room for this many steps.
      draft_vocabulary: drafts are among the tokens below this id; None for all.
    """

    marks: tuple[int, int]
    most_steps: int
    draft_vocabulary: int | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Written:
    """What a call of ``decode`` wrote.

    Attributes:
      tokens: the new tokens of each slot, ``counts`` of them.
      model_logprobs: their log-probabilities by the model itself, for slots that tell them.
      sampling_logprobs: those by what they were drawn from.
      top_logprobs, top_ids: the model's most likely tokens there, for slots that tell them.
      proposed, accepted: drafts of each step that counted, and those that were accepted.
      thinking: whether a slot was inside a think block when the step began.
      steps: steps taken.
      stopped, closed: as in ``Slots``, after the call.
    """

    tokens: Int[Array, "B W"]
    model_logprobs: Float32[Array, "B W"]
    sampling_logprobs: Float32[Array, "B W"]
    top_logprobs: Float32[Array, "B W L"]
    top_ids: Int[Array, "B W L"]
    counts: Int[Array, " B"]
    proposed: Int[Array, "B S"]
    accepted: Int[Array, "B S"]
    thinking: Bool[Array, "B S"]
    steps: Int[Array, ""]
    stopped: Int[Array, " B"]
    closed: Int[Array, " B"]

    @classmethod
    def empty(cls, slots: Slots, most_steps: int) -> "Written":
        """Makes room for ``most_steps`` steps."""
        B, window = slots.token.shape[0], slots.drafts.tokens.shape[1] + 1
        vocab_size = slots.seen.shape[1]
        tokens = jnp.zeros((B, most_steps * window), jnp.int32)
        tops = jnp.zeros((*tokens.shape, min(MAX_LOGPROBS, vocab_size)), jnp.int32)
        numbers, steps = tokens.astype(jnp.float32), jnp.zeros((B, most_steps), jnp.int32)
        return cls(
            tokens, numbers, numbers, tops.astype(jnp.float32), tops, jnp.zeros(B, jnp.int32),
            steps, steps, steps.astype(bool), jnp.zeros((), jnp.int32), slots.stopped, slots.closed,
        )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("graph", "program"), donate_argnames=("memory", "slots"))
def decode(
    graph: nnx.GraphDef,
    weights: nnx.State,
    memory: Memory,
    slots: Slots,
    order: Order,
    program: Program,
) -> tuple[Memory, Slots, Written]:
    """Takes ``order.steps`` steps; fewer if no slot writes any more, or if one stops and ``order`` says so."""
    model = nnx.merge(graph, weights)
    # Once for all steps: a part of the head is copied.
    draft_head = model.head_weight()[: program.draft_vocabulary]

    def goes_on(carry):
        _, slots, written = carry
        one_stopped = jnp.any(order.running & ~slots.active)
        return (written.steps < order.steps) & jnp.any(slots.active) & ~(order.leave_early & one_stopped)

    def step(carry):
        memory, slots, written = carry
        memory, slots, written = _step(model, draft_head, memory, slots, written, order, program.marks)
        return memory.split(), slots.split(), written

    memory, slots, written = lax.while_loop(goes_on, step, (memory, slots, Written.empty(slots, program.most_steps)))
    return memory, slots, dataclasses.replace(written, stopped=slots.stopped, closed=slots.closed)


def _step(
    model: Qwen35,
    draft_head: Float[Array, "_ D"],
    memory: Memory,
    slots: Slots,
    written: Written,
    order: Order,
    marks: tuple[int, int],
) -> tuple[Memory, Slots, Written]:
    # Slots that do not write may be reading a prompt: their states stay as they are, their pages are not touched.
    table, num_past = jnp.where(slots.active[:, None], order.table, 0), jnp.where(slots.active, slots.num_past, 0)
    # A mask knows the next token only.
    valid = jnp.where(order.masks.on, 0, slots.drafts.valid)
    slots = dataclasses.replace(slots, drafts=dataclasses.replace(slots.drafts, valid=valid))
    window = jnp.concatenate([slots.token[:, None], slots.drafts.tokens], axis=1)
    state = PagedState(memory.layers, table, slots.length, num_past, offset=slots.offset)
    hidden, state = model.forward(window, state=state)
    raw = model.head_logits(hidden)
    positions = slots.length[:, None] + 1 + jnp.arange(window.shape[1])
    forced = forced_tokens(slots, marks)
    verified = verify(raw, slots.drafts, forced, slots.settings, slots.seeds, positions, slots.seen, order.masks)
    after, emitted = advance(slots, verified.tokens, verified.count, marks)
    written = _write(written, slots, verified, raw, emitted)
    memory = dataclasses.replace(memory, layers=state.layers)
    if memory.mtp is not None:
        mtp, drafts = _draft(model, draft_head, memory.mtp, slots, after, hidden, verified, table)
        memory, after = dataclasses.replace(memory, mtp=mtp), dataclasses.replace(after, drafts=drafts)
    return memory, after, written


def _write(
    written: Written, slots: Slots, verified: Verified, raw: Float[Array, "B T V"], emitted: Int[Array, " B"]
) -> Written:
    """Adds a window's tokens to those of the call."""
    B, T = verified.tokens.shape
    rows, columns = jnp.arange(B)[:, None], jnp.arange(T)
    places = jnp.where(columns < emitted[:, None], written.counts[:, None] + columns, written.tokens.shape[1])
    width = written.top_ids.shape[-1]

    def put(array, values):
        return array.at[rows, places].set(values, mode="drop")

    def tops(top_logprobs, top_ids):
        _, values, ids = log_probabilities(raw, verified.tokens, width)
        return put(top_logprobs, values), put(top_ids, ids)

    def told(model_logprobs):
        return put(model_logprobs, log_probabilities(raw, verified.tokens, 0)[0])

    model_logprobs = lax.cond(jnp.any(slots.active & slots.tells), told, lambda array: array, written.model_logprobs)
    top_logprobs, top_ids = lax.cond(
        jnp.any(slots.active & slots.tells_top), tops, lambda *arrays: arrays, written.top_logprobs, written.top_ids
    )
    return dataclasses.replace(
        written,
        tokens=put(written.tokens, verified.tokens),
        model_logprobs=model_logprobs,
        sampling_logprobs=put(written.sampling_logprobs, verified.sampling_logprobs),
        top_logprobs=top_logprobs,
        top_ids=top_ids,
        counts=written.counts + emitted,
        proposed=written.proposed.at[:, written.steps].set(jnp.where(slots.active, slots.drafts.valid, 0)),
        accepted=written.accepted.at[:, written.steps].set(jnp.where(slots.active, verified.count, 0)),
        thinking=written.thinking.at[:, written.steps].set(slots.thinking),
        steps=written.steps + 1,
    )


def _draft(
    model: Qwen35,
    head: Float[Array, "_ D"],
    mtp: PagedKeyValues,
    before: Slots,
    after: Slots,
    hidden: Float[Array, "B T D"],
    verified: Verified,
    table: Int[Array, "B M"],
) -> tuple[PagedKeyValues, Drafts]:
    """Reads the window's true tokens with the MTP head and draws the next drafts, each from the one before.

    ``count + 1`` drafts count next time: a slot whose drafts are rejected asks for fewer.
    """
    num_drafts, count = before.drafts.tokens.shape[1], verified.count
    state = PagedState((mtp,), table, before.length, before.num_past, offset=before.offset)
    ahead, state = model.draft_forward(hidden, verified.tokens, None, state)
    vector = jnp.take_along_axis(ahead, count[:, None, None], axis=1)
    # The newest token stands at this position; the drafts come after it.
    newest = before.length + 1 + count
    drawn = []
    for j in range(num_drafts):
        if j:
            state = dataclasses.replace(state, lengths=newest + j - 1)
            vector, state = model.draft_forward(vector, drawn[-1][0][:, None], None, state)
        logits = model.head_logits(vector[:, 0], head)
        drawn.append(draw_draft(logits, after.settings, after.seeds, newest + 1 + j))
    tokens, ids, probs = (jnp.stack(parts, axis=1) for parts in zip(*drawn, strict=True))
    (keys_values,) = state.layers
    assert isinstance(keys_values, PagedKeyValues)
    return keys_values, Drafts(tokens, ids, probs, jnp.minimum(count + 1, num_drafts))
