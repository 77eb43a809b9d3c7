"""The replay of a window in a kernel for a TPU: it reads and writes a state once, however many tokens there are.

Letters: as in ``replay.py``; ``U`` tokens of the past, ``W = U + T`` of both windows, ``G`` heads of a step.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.sharding import current_platform

_WIDTH, _HEADS, _MAX_TOKENS = 128, 8, 16


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
    state: Float32[Array, "B N K V"],
    past: tuple[Float[Array, "B U N K"], Float[Array, "B U N V"], Float[Array, "B U N"], Float[Array, "B U N"]],
    num_past: Int[Array, " B"],
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """Computes ``gated_delta_replay`` on what ``fits`` accepts; platforms other than a TPU interpret the kernel."""
    B, T, N, V = v.shape
    U, G = past[0].shape[1], min(N, _HEADS)
    keys, values = _rows(q, k, v, log_decay, beta, past, num_past)

    def block(*shape: int):
        return pl.BlockSpec((1, G, *shape), lambda b, n: (b, n, 0, 0))

    out, after = pl.pallas_call(
        functools.partial(_kernel, num_past=U, num_tokens=T),
        name="gated_delta_replay",
        grid=(B, N // G),
        in_specs=[block(*x.shape[2:]) for x in (keys, values, state)],
        out_specs=(block(T, V), block(*state.shape[2:])),
        out_shape=(jax.ShapeDtypeStruct((B, N, T, V), v.dtype), jax.ShapeDtypeStruct(state.shape, state.dtype)),
        input_output_aliases={2: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=current_platform() != "tpu",
    )(keys, values, state)
    return jnp.swapaxes(out, 1, 2), after


def _rows(q, k, v, log_decay, beta, past, num_past) -> tuple[Float32[Array, "B N _ K"], Float32[Array, "B N _ V"]]:
    """Returns the keys and queries, and the values, decays and betas as rows; what does not count changes nothing."""
    T, U = k.shape[1], past[0].shape[1]
    keys, values, decays, betas = (jnp.concatenate(pair, 1) for pair in zip(past, (k, v, log_decay, beta), strict=True))
    index = jnp.arange(U + T)
    is_real = ((index >= U) | (index < num_past[:, None]))[..., None]
    keys, values = (jnp.where(is_real[..., None], x.astype(jnp.float32), 0) for x in (keys, values))
    decays = jnp.exp(jnp.where(is_real, decays.astype(jnp.float32), 0))
    betas = jnp.where(is_real, betas.astype(jnp.float32), 0)
    wide = (jnp.broadcast_to(x[..., None], values.shape) for x in (decays, betas))
    keys = jnp.concatenate([keys, q.astype(jnp.float32)], axis=1)
    # Whole tiles of eight rows: the kernel turns them into columns.
    keys = jnp.pad(keys, ((0, 0), (0, -keys.shape[1] % 8), (0, 0), (0, 0)))
    return jnp.swapaxes(keys, 1, 2), jnp.swapaxes(jnp.concatenate([values, *wide], axis=1), 1, 2)


def _kernel(keys, values, state, out, after, *, num_past: int, num_tokens: int) -> None:
    """Takes the heads of a group one by one; their columns and rows are those of ``_rows``."""
    window = num_past + num_tokens
    for head in range(state.shape[1]):
        columns, rows, current = keys[0, head].T, values[0, head], state[0, head]
        read = []
        for t in range(window):
            v, decay, beta = (rows[i : i + 1] for i in (t, window + t, 2 * window + t))
            key = columns[:, t : t + 1]
            current = decay * current
            current = current + key * (beta * (v - jnp.sum(key * current, axis=0, keepdims=True)))
            if t == num_past - 1:
                after[0, head] = current
            if t >= num_past:
                query = columns[:, window + t - num_past : window + t - num_past + 1]
                read.append(jnp.sum(query * current, axis=0, keepdims=True))
        out[0, head] = jnp.concatenate(read, axis=0).astype(out.dtype)
