"""The replay of a window in a kernel for a TPU: it reads and writes a state once, however many tokens there are.

Letters: as in ``replay.py``; ``U`` tokens of the past, ``G`` heads of a step, ``R`` rows in whole tiles.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Float32, Int

from qwen35_jax.sharding import current_platform

_WIDTH, _HEADS, _TILE, _MAX_TOKENS = 128, 8, 16, 16

Past = tuple[Float[Array, "B U N K"], Float[Array, "B U N V"], Float[Array, "B U N"], Float[Array, "B U N"]]
"""Keys, values, log decays and betas of the window before, of ``U`` tokens."""


def fits(k: Float[Array, "B T N K"], v: Float[Array, "B T N V"], past_k: Float[Array, "B U N K"]) -> bool:
    """Whether the kernel takes these: heads of 128, few or in groups of eight, at most 16 tokens in both windows."""
    _, T, N, K = k.shape
    grouped = N < _HEADS or N % _HEADS == 0
    return K == v.shape[-1] == _WIDTH and grouped and T + past_k.shape[1] <= _MAX_TOKENS


def replay_kernel(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    states: Float32[Array, "L B N K V"],
    layer: Int[Array, ""],
    past: Past,
    num_past: Int[Array, " B"],
) -> tuple[Float[Array, "B T N V"], Float32[Array, "L B N K V"]]:
    """Computes ``gated_delta_replay`` on what ``fits`` accepts; platforms other than a TPU interpret the kernel.

    It finds the layer in the stack by itself: a slice of the stack would be copied there and back.
    """
    B, T, N, V = v.shape
    U, G = past[0].shape[1], min(N, _HEADS)
    past_k, past_v, *past_gates = (jnp.where(counts_of(x, num_past), x, 0) for x in past)
    keys, values = _by_head(past_k, k, q), _by_head(past_v, v)
    gates = _gates(log_decay, beta, *past_gates).reshape(B * N // G, 1, -1)

    def block(*shape: int):
        return pl.BlockSpec((1, G, *shape), lambda b, n, layer: (b, n, 0, 0))

    of_layer = pl.BlockSpec((1, 1, G, *states.shape[3:]), lambda b, n, layer: (layer[0], b, n, 0, 0))
    scalars = pl.BlockSpec(
        (1, 1, gates.shape[2]), lambda b, n, layer: (b * (N // G) + n, 0, 0), memory_space=pltpu.SMEM
    )
    out, after = pl.pallas_call(
        functools.partial(_kernel, num_past=U, num_tokens=T),
        name="gated_delta_replay",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, N // G),
            in_specs=[scalars, block(*keys.shape[2:]), block(*values.shape[2:]), of_layer],
            out_specs=(block(T, V), of_layer),
        ),
        out_shape=(jax.ShapeDtypeStruct((B, N, T, V), v.dtype), jax.ShapeDtypeStruct(states.shape, states.dtype)),
        input_output_aliases={4: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=current_platform() != "tpu",
    )(layer[None], gates, keys, values, states)
    return jnp.swapaxes(out, 1, 2), after


def counts_of(past: Float[Array, "B U ..."], num_past: Int[Array, " B"]) -> Bool[Array, "B U ..."]:
    """Says which tokens of the past count, in the axes of ``past``."""
    counts = jnp.arange(past.shape[1]) < num_past[:, None]
    return jnp.expand_dims(counts, tuple(range(2, past.ndim)))


def _by_head(*windows: Float[Array, "B _ N K"]) -> Float[Array, "B N R K"]:
    """Joins windows of tokens into whole tiles for each head."""
    joined = jnp.concatenate(windows, axis=1)
    return jnp.swapaxes(jnp.pad(joined, ((0, 0), (0, -joined.shape[1] % _TILE), (0, 0), (0, 0))), 1, 2)


def _gates(log_decay, beta, past_log_decay, past_beta) -> Float32[Array, "B N _"]:
    """Returns the numbers of each head, in the order in which ``_kernel`` takes them.

    The last are by how much what token ``i`` has written is decayed when token ``t`` comes.
    """
    since, T = jnp.cumsum(log_decay.astype(jnp.float32), axis=1), beta.shape[1]
    pairs = [jnp.exp(since[:, t] - since[:, i])[:, None] for t in range(T) for i in range(t)]
    gates = [jnp.exp(past_log_decay), past_beta, jnp.exp(since), beta, *pairs]
    return jnp.swapaxes(jnp.concatenate(gates, axis=1, dtype=jnp.float32), 1, 2)


def _kernel(_, gates, keys, values, states, out, after, *, num_past: int, num_tokens: int) -> None:
    """Takes the heads of a group one by one: replays the past, then reads the window on top of it."""
    num_heads = keys.shape[1]
    each = gates.shape[2] // num_heads
    columns = _columns(keys[0, 0], num_past)
    for head in range(num_heads):
        gate = iter([gates[0, 0, head * each + i] for i in range(each)])
        v, state, ahead = values[0, head].astype(jnp.float32), states[0, 0, head], columns
        # Those of the next head are made on the matrix unit while the vector unit works on this one.
        columns = _columns(keys[0, head + 1], num_past) if head + 1 < num_heads else []
        decays, betas = ([next(gate) for _ in range(num_past)] for _ in range(2))
        for t, key in enumerate(ahead):
            state = decays[t] * state
            state = state + key * (betas[t] * (v[t : t + 1] - jnp.sum(key * state, axis=0, keepdims=True)))
        after[0, 0, head] = state
        rows = keys[0, head]
        found = _times_state(rows, state)[num_past : num_past + 2 * num_tokens]
        alike = _product(rows, rows, 1, 1)[num_past : num_past + 2 * num_tokens]
        out[0, head] = _read_window(found, alike[:, num_past:], v[num_past:], gate, num_tokens).astype(out.dtype)


def _read_window(found, alike, v, gate: Iterator[Float32[Array, ""]], num_tokens: int) -> Float32[Array, "T V"]:
    """Returns what the window's queries read.

    A state of the window is the one before it, decayed, and what the window's tokens have written since. None of
    these states is ever made.

    Args:
      found: what the window's keys, then its queries, find in the state before it.
      alike: their products with the window's keys.
    """
    whole, betas = ([next(gate) for _ in range(num_tokens)] for _ in range(2))
    written, read = [], []
    for t in range(num_tokens):
        known, total = (whole[t] * found[i : i + 1] for i in (t, num_tokens + t))
        for i, one in enumerate(written):
            decayed = next(gate) * one
            known, total = (x + alike[j : j + 1, i : i + 1] * decayed for x, j in ((known, t), (total, num_tokens + t)))
        written.append(betas[t] * (v[t : t + 1] - known))
        read.append(total + alike[num_tokens + t : num_tokens + t + 1, t : t + 1] * written[t])
    return jnp.concatenate(read, axis=0)


def _columns(rows: Float[Array, "R K"], count: int) -> list[Float32[Array, "K V"]]:
    """Returns the first rows as columns that are repeated over the lanes.

    Products with one on the matrix unit are exact, and faster than moves between lanes.
    """
    index = lax.broadcasted_iota(jnp.int32, (rows.shape[0], _WIDTH), 0)
    return [_product(rows, (index == t).astype(rows.dtype), 0, 0) for t in range(count)]


def _times_state(rows: Float[Array, "R K"], state: Float32[Array, "K V"]) -> Float32[Array, "R V"]:
    """Multiplies rows by a state in float32: a float32 number is the sum of three of bfloat16."""
    if rows.dtype != jnp.bfloat16:
        return _product(rows, state, 1, 0)
    total = jnp.zeros((rows.shape[0], state.shape[1]), jnp.float32)
    for _ in range(3):
        bits = lax.bitcast_convert_type(state, jnp.int32) & -(1 << 16)
        part = lax.bitcast_convert_type(bits, jnp.float32)
        total, state = total + _product(rows, part.astype(rows.dtype), 1, 0), state - part
    return total


def _product(a: Array, b: Array, *axes: int) -> Array:
    """Multiplies an axis of ``a`` with one of ``b``, in float32."""
    precision = None if a.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
