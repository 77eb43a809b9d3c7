"""The compiled programs of generation: reading prompts, writing tokens, making room in the cache.

Letters: ``B`` rows, ``T`` prompt slots, ``D`` model width, ``V`` vocabulary, ``E`` end tokens, ``W`` tokens written.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from qwen35_jax.cache import Cache
from qwen35_jax.config import TextConfig
from qwen35_jax.inference.sampling import SamplingParams, penalize_presence, row_keys, sample
from qwen35_jax.model import Qwen35

STEPS_PER_CALL = 64
"""Most tokens a call of ``decode`` writes: often enough to report finished rows and to stop early, seldom enough for
the host to cost nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded on the left.

    Attributes:
      segment_ids: 0 for padding, 1 for the prompt.
      filling: rows that only bring the batch to its size.
      numbers: which prompt of the caller's list a row is; it gives the row its random stream.
      key: of the seed.
      eos_token_ids: what ends a completion.
    """

    input_ids: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    filling: Bool[Array, " B"]
    numbers: Int[Array, " B"]
    key: Key[Array, ""]
    eos_token_ids: Int[Array, " E"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """A batch between two steps.

    Attributes:
      cache: everything before ``token``.
      token: the newest token of each row, not yet in the cache.
      done: rows that reached an end token; they run on, unread, until the batch ends.
      generated: tokens of each completion so far; None without a presence penalty.
      numbers, key, eos_token_ids: as in ``Prompts``.
    """

    cache: Cache
    token: Int[Array, " B"]
    done: Bool[Array, " B"]
    generated: Bool[Array, "B V"] | None
    numbers: Int[Array, " B"]
    key: Key[Array, ""]
    eos_token_ids: Int[Array, " E"]


@functools.partial(jax.jit, static_argnames=("graph", "capacity", "sampling"))
def prefill(graph: nnx.GraphDef, weights: nnx.State, prompts: Prompts, capacity: int, sampling: SamplingParams) -> Rows:
    """Reads the prompts into a new cache of ``capacity`` slots and chooses the first token of every completion."""
    model = nnx.merge(graph, weights)
    num_rows, text = prompts.input_ids.shape[0], model.config.text
    cache = Cache.empty(text, num_rows, capacity, model.dtype)
    hidden, cache = model.forward(prompts.input_ids, cache, prompts.segment_ids)
    rows = Rows(
        cache=cache,
        token=jnp.zeros(num_rows, jnp.int32),
        done=prompts.filling,
        generated=jnp.zeros((num_rows, text.vocab_size), bool) if sampling.presence_penalty else None,
        numbers=prompts.numbers,
        key=prompts.key,
        eos_token_ids=prompts.eos_token_ids,
    )
    return _choose(_last_logits(model, hidden), rows, 0, sampling)


@functools.partial(jax.jit, static_argnames=("graph", "sampling"), donate_argnames=("rows",))
def decode(
    graph: nnx.GraphDef,
    weights: nnx.State,
    rows: Rows,
    written: Int[Array, ""],
    steps: Int[Array, ""],
    sampling: SamplingParams,
) -> tuple[Rows, Int[Array, "B W"], Int[Array, ""]]:
    """Writes tokens until all rows are done, ``steps`` at most; the cache must have a slot for each.

    Args:
      written: tokens of every completion so far.
      steps: at most ``STEPS_PER_CALL``.

    Returns:
      The rows after the last step; their new tokens, ``W = STEPS_PER_CALL``; how many of those were written.
    """
    model = nnx.merge(graph, weights)
    segment_ids = jnp.ones((rows.token.shape[0], 1), jnp.int32)

    def unfinished(carry: tuple[Rows, Array, Array]) -> Array:
        rows, _, taken = carry
        return (taken < steps) & ~jnp.all(rows.done)

    def step(carry: tuple[Rows, Array, Array]) -> tuple[Rows, Array, Array]:
        rows, tokens, taken = carry
        hidden, cache = model.forward(rows.token[:, None], rows.cache, segment_ids)
        rows = dataclasses.replace(rows, cache=cache)
        rows = _choose(_last_logits(model, hidden), rows, written + taken, sampling)
        return rows, tokens.at[:, taken].set(rows.token), taken + 1

    tokens = jnp.zeros((rows.token.shape[0], STEPS_PER_CALL), jnp.int32)
    return lax.while_loop(unfinished, step, (rows, tokens, jnp.zeros((), jnp.int32)))


@functools.partial(jax.jit, static_argnames=("cfg", "capacity"))
def grow(cache: Cache, cfg: TextConfig, capacity: int) -> Cache:
    """Adds free slots at the end of a cache."""
    batch = cache.segment_ids.shape[0]
    wanted = jax.eval_shape(lambda: Cache.empty(cfg, batch, capacity, jnp.float32))

    def pad(x: Array, like: jax.ShapeDtypeStruct) -> Array:
        missing = [(0, new - old) for old, new in zip(x.shape, like.shape, strict=True)]
        return jnp.pad(x, missing) if any(after for _, after in missing) else x

    return jax.tree.map(pad, cache, wanted)


def _last_logits(model: Qwen35, hidden: Float[Array, "B T D"]) -> Float[Array, "B V"]:
    head = model.head_weight().astype(hidden.dtype)
    return jnp.einsum("BD,VD->BV", hidden[:, -1], head, preferred_element_type=jnp.float32)


def _choose(logits: Float[Array, "B V"], rows: Rows, step: Int[Array, ""] | int, sampling: SamplingParams) -> Rows:
    """Chooses token number ``step`` of every completion."""
    generated = rows.generated
    if generated is not None:
        logits = penalize_presence(logits, generated, sampling.presence_penalty)
    token = sample(logits, row_keys(rows.key, rows.numbers, step), sampling)
    if generated is not None:
        generated = generated.at[jnp.arange(token.shape[0]), token].set(True)
    done = rows.done | jnp.isin(token, rows.eos_token_ids)
    return dataclasses.replace(rows, token=token, done=done, generated=generated)
