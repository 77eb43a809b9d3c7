"""The compiled programs of generation: they read prompts, write tokens and make room in the state.

Letters: ``B`` sequences, ``T`` prompt slots, ``D`` model width, ``V`` vocabulary, ``E`` end tokens, ``W`` tokens
written.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from qwen35_jax.inference.sampling import SamplingParams, penalize_presence, sample, sequence_keys
from qwen35_jax.model import Qwen35
from qwen35_jax.state import DecoderState

STEPS_PER_CALL = 64
"""Most tokens a call of ``decode`` writes: often enough to report finished sequences and to stop early, seldom enough
for the host to cost nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded at their ends.

    Attributes:
      segment_ids: 1 for the prompt, 0 for padding.
      lengths: tokens of each prompt.
      filling: sequences that only bring the batch to its size.
      numbers: which prompt of the caller's list a sequence is; it gives the sequence its random stream.
      key: of the seed.
      eos_token_ids: what ends a completion.
    """

    input_ids: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    filling: Bool[Array, " B"]
    numbers: Int[Array, " B"]
    key: Key[Array, ""]
    eos_token_ids: Int[Array, " E"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequences:
    """A batch between two steps.

    Attributes:
      state: everything before ``token``.
      token: the newest token of each sequence, not yet in the state.
      done: sequences that reached an end token. They run on until the batch ends, but nothing reads them.
      generated: tokens of each completion so far; None without a presence penalty.
      numbers, key, eos_token_ids: as in ``Prompts``.
    """

    state: DecoderState
    token: Int[Array, " B"]
    done: Bool[Array, " B"]
    generated: Bool[Array, "B V"] | None
    numbers: Int[Array, " B"]
    key: Key[Array, ""]
    eos_token_ids: Int[Array, " E"]


@functools.partial(jax.jit, static_argnames=("graph", "capacity", "sampling"))
def prefill(
    graph: nnx.GraphDef, weights: nnx.State, prompts: Prompts, capacity: int, sampling: SamplingParams
) -> Sequences:
    """Reads the prompts into a new state of ``capacity`` slots and chooses the first token of every completion."""
    model = nnx.merge(graph, weights)
    batch, text = prompts.input_ids.shape[0], model.config.text
    state = DecoderState.empty(text, batch, capacity, model.dtype)
    hidden, state = model.forward(prompts.input_ids, prompts.segment_ids, state=state)
    sequences = Sequences(
        state=state,
        token=jnp.zeros(batch, jnp.int32),
        done=prompts.filling,
        generated=jnp.zeros((batch, text.vocab_size), bool) if sampling.presence_penalty else None,
        numbers=prompts.numbers,
        key=prompts.key,
        eos_token_ids=prompts.eos_token_ids,
    )
    last = jnp.take_along_axis(hidden, prompts.lengths[:, None, None] - 1, axis=1)[:, 0]
    return _choose(model, last, sequences, 0, sampling)


@functools.partial(jax.jit, static_argnames=("graph", "sampling"), donate_argnames=("sequences",))
def decode(
    graph: nnx.GraphDef,
    weights: nnx.State,
    sequences: Sequences,
    written: Int[Array, ""] | int,
    steps: Int[Array, ""] | int,
    sampling: SamplingParams,
) -> tuple[Sequences, Int[Array, "B W"], Int[Array, ""]]:
    """Writes tokens until all sequences are done, ``steps`` at most; the state must have a slot for each.

    Args:
      written: tokens of every completion so far.
      steps: at most ``STEPS_PER_CALL``.

    Returns:
      The sequences after the last step; their new tokens, ``W = STEPS_PER_CALL``; how many of those were written.
    """
    model = nnx.merge(graph, weights)

    def unfinished(carry: tuple[Sequences, Array, Array]) -> Array:
        sequences, _, taken = carry
        return (taken < steps) & ~jnp.all(sequences.done)

    def step(carry: tuple[Sequences, Array, Array]) -> tuple[Sequences, Array, Array]:
        sequences, tokens, taken = carry
        hidden, state = model.forward(sequences.token[:, None], state=sequences.state)
        sequences = dataclasses.replace(sequences, state=state)
        sequences = _choose(model, hidden[:, -1], sequences, written + taken, sampling)
        return sequences, tokens.at[:, taken].set(sequences.token), taken + 1

    tokens = jnp.zeros((sequences.token.shape[0], STEPS_PER_CALL), jnp.int32)
    return lax.while_loop(unfinished, step, (sequences, tokens, jnp.zeros((), jnp.int32)))


@functools.partial(jax.jit, static_argnames="capacity")
def grow(state: DecoderState, capacity: int) -> DecoderState:
    """Adds free slots at the end of every sequence."""
    return state.resized(capacity)


def _choose(
    model: Qwen35,
    hidden: Float[Array, "B D"],
    sequences: Sequences,
    step: Int[Array, ""] | int,
    sampling: SamplingParams,
) -> Sequences:
    """Chooses token number ``step`` of every completion from the output at its newest token."""
    logits, generated = model.head_logits(hidden), sequences.generated
    if generated is not None:
        logits = penalize_presence(logits, generated, sampling.presence_penalty)
    token = sample(logits, sequence_keys(sequences.key, sequences.numbers, step), sampling)
    if generated is not None:
        generated = generated.at[jnp.arange(token.shape[0]), token].set(True)
    done = sequences.done | jnp.isin(token, sequences.eos_token_ids)
    return dataclasses.replace(sequences, token=token, done=done, generated=generated)
