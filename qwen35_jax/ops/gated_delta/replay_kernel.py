"""The replay of a window in a kernel for a TPU: it reads and writes a state once, however many tokens there are.

Letters: as in ``replay.py``; ``U`` tokens of the past, ``W = U + T`` of both windows, ``G`` heads of a step.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Float32, Int

from qwen35_jax.sharding import current_platform

_WIDTH, _HEADS, _MAX_TOKENS = 128, 8, 16

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
    keys, values = _rows(q, k, v, log_decay, beta, past, num_past)

    def block(*shape: int):
        return pl.BlockSpec((1, G, *shape), lambda b, n, layer: (b, n, 0, 0))

    of_layer = pl.BlockSpec((1, 1, G, *states.shape[3:]), lambda b, n, layer: (layer[0], b, n, 0, 0))
    out, after = pl.pallas_call(
        functools.partial(_kernel, num_past=U, num_tokens=T),
        name="gated_delta_replay",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, N // G),
            in_specs=[block(*keys.shape[2:]), block(*values.shape[2:]), of_layer],
            out_specs=(block(T, V), of_layer),
        ),
        out_shape=(jax.ShapeDtypeStruct((B, N, T, V), v.dtype), jax.ShapeDtypeStruct(states.shape, states.dtype)),
        input_output_aliases={3: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=current_platform() != "tpu",
    )(layer[None], keys, values, states)
    return jnp.swapaxes(out, 1, 2), after


def join_windows(past: Past, window: tuple, num_past: Int[Array, " B"]) -> tuple[tuple, Bool[Array, "B W"]]:
    """Puts a window's keys, values, log decays and betas behind those before; returns also which tokens count."""
    tokens = tuple(jnp.concatenate(pair, axis=1) for pair in zip(past, window, strict=True))
    num_before, index = past[0].shape[1], jnp.arange(tokens[0].shape[1])
    return tokens, (index >= num_before) | (index < num_past[:, None])


def _rows(q, k, v, log_decay, beta, past, num_past) -> tuple[Float[Array, "B N _ K"], Float32[Array, "B N _ V"]]:
    """Returns the keys and queries, and the values, decays and betas as rows; what does not count changes nothing."""
    (keys, values, decays, betas), is_real = join_windows(past, (k, v, log_decay, beta), num_past)
    is_real = is_real[..., None]
    keys, values = (jnp.where(is_real[..., None], x, 0) for x in (keys, values.astype(jnp.float32)))
    decays = jnp.exp(jnp.where(is_real, decays.astype(jnp.float32), 0))
    betas = jnp.where(is_real, betas.astype(jnp.float32), 0)
    wide = (jnp.broadcast_to(x[..., None], values.shape) for x in (decays, betas))
    keys = jnp.concatenate([keys, q.astype(keys.dtype)], axis=1)
    # Whole tiles: the kernel turns them into columns.
    keys = jnp.pad(keys, ((0, 0), (0, -keys.shape[1] % 16), (0, 0), (0, 0)))
    return jnp.swapaxes(keys, 1, 2), jnp.swapaxes(jnp.concatenate([values, *wide], axis=1), 1, 2)


def _kernel(_, keys, values, states, out, after, *, num_past: int, num_tokens: int) -> None:
    """Takes the heads of a group one by one; their columns and rows are those of ``_rows``."""
    window = num_past + num_tokens
    for head in range(keys.shape[1]):
        columns = _columns(keys[0, head], window + num_tokens)
        rows, current = values[0, head], states[0, 0, head]
        read = []
        for t in range(window):
            v, decay, beta = (rows[i : i + 1] for i in (t, window + t, 2 * window + t))
            key = columns[t]
            current = decay * current
            current = current + key * (beta * (v - jnp.sum(key * current, axis=0, keepdims=True)))
            if t == num_past - 1:
                after[0, 0, head] = current
            if t >= num_past:
                query = columns[window + t - num_past]
                read.append(jnp.sum(query * current, axis=0, keepdims=True))
        out[0, head] = jnp.concatenate(read, axis=0).astype(out.dtype)


def _columns(rows: Float[Array, "R K"], count: int) -> list[Float32[Array, "K V"]]:
    """Returns the first rows as columns that are repeated over the lanes.

    Products with one on the matrix unit are exact, and faster than moves between lanes.
    """
    index = lax.broadcasted_iota(jnp.int32, (rows.shape[0], _WIDTH), 0)
    exact = None if rows.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    return [
        lax.dot_general(
            rows, (index == t).astype(rows.dtype), (((0,), (0,)), ((), ())),
            precision=exact, preferred_element_type=jnp.float32,
        )
        for t in range(count)
    ]  # fmt: skip
