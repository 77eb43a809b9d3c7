"""The chunks of a sequence in two kernels for a TPU, forward and backward; between chunks the states stay in the chip.

They compute what ``single_chunk.py`` says, for eight heads at a time. The products of one head wait for each other;
those of eight keep the matrix units busy.

Letters: ``B`` batch, ``T`` tokens, ``N`` value heads, ``G`` heads of one step of a kernel, ``K`` key width, ``V``
value width, ``C`` position in chunk, ``M`` chunks, ``H`` any width.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.ops.gated_delta import single_chunk as one
from qwen35_jax.ops.gated_delta.chunks import Chunks, cut_into_chunks
from qwen35_jax.ops.gated_delta.inverse import invert
from qwen35_jax.ops.gated_delta.precision import KERNEL
from qwen35_jax.sharding import current_platform

CHUNK_SIZE = 128

KERNEL_PRODUCTS = {
    "gated_delta_forward": (23, 42),
    "gated_delta_backward": (17, 53),
    "gated_delta_map_forward": (23, 48),
    "gated_delta_map_backward": (18, 69),
}
"""By kernel: products of two 128 x 128 matrices for a chunk of a head, and passes of the matrix unit for them."""

_WIDTH, _HEADS = 128, 8

# 24 MiB suffice for values of 128, 48 MiB for 256; the compiler gives 16 MiB unless asked. A v5p has 64 MiB,
# v5e and v6e have 128.
_MEMORY = 48 * 2**20


def fits(k: Float[Array, "B T N K"], v: Float[Array, "B T N V"]) -> bool:
    """Whether the kernels take such tokens: bfloat16, heads of 128, a chunk or more, few heads or groups of eight."""
    _, T, N, K = k.shape
    return (
        (k.dtype == v.dtype == jnp.bfloat16)
        and (K == v.shape[-1] == _WIDTH)
        and T >= CHUNK_SIZE
        and (N < _HEADS or N % _HEADS == 0)
    )


def gated_delta_kernel(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    state: Float32[Array, "B N K V"],
    segment_ids: Int[Array, "B T"] | None = None,
    state_segment_ids: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """Runs the kernels on inputs that ``fits`` accepts; platforms other than a TPU interpret them. See ``gated_delta``.

    The backward pass keeps the inputs, and the state and the inverse of each chunk.
    """
    chunks = cut_into_chunks(q, k, v, log_decay, beta, segment_ids, state_segment_ids, chunk_size=CHUNK_SIZE)
    o, after = run_chunks(chunks, state)
    assert o is not None
    return o[:, : v.shape[1]], after


def run_chunks(
    chunks: Chunks, state: Float32[Array, "B N K V"]
) -> tuple[Float[Array, "B T N V"] | None, Float32[Array, "B N K V"]]:
    """Returns the outputs (None without queries) and the state after the last chunk."""
    if chunks.is_real is not None:
        is_real = chunks.is_real[..., None, None]
        q = None if chunks.q is None else jnp.where(is_real, chunks.q, 0)
        k, v = jnp.where(is_real, chunks.k, 0), jnp.where(is_real, chunks.v, 0)
        chunks = chunks._replace(q=q, k=k, v=v, is_real=None)
    return _run(chunks, state)


@jax.custom_vjp
def _run(chunks: Chunks, state: Float32[Array, "B N K V"]):
    return _run_forward(_read(chunks), state)[0]


def _forward(chunks: Chunks, state):
    read = _read(chunks)
    B, N, _, K = read["k"].shape
    M, V = read["gates"].shape[1], state.shape[-1]
    kept = {"states": _floats(B, M, N, K, V), "inverses": _floats(B, M, N, CHUNK_SIZE, CHUNK_SIZE)}
    results, kept = _run_forward(read, state, kept)
    return results, (read | kept, chunks.log_decay)


def _run_forward(read: dict[str, Array], state, kept: dict[str, jax.ShapeDtypeStruct] | None = None):
    """Returns the results of ``run_chunks``, and what ``kept`` names."""
    write = {"after": _like(state)} | (kept or {})
    if "q" in read:
        write["o"] = _like(read["v"])
    written = _call(_forward_kernel, read | {"state": state}, write)
    o, after = written.pop("o", None), written.pop("after")
    return (None if o is None else jnp.moveaxis(o, 1, 2), after), written


def _backward(residuals, cotangents):
    kept, log_decay = residuals
    d_o, d_after = cotangents
    read = kept | {"d_after": d_after}
    if d_o is not None:
        read["d_o"] = jnp.moveaxis(d_o, 2, 1)
    write = {f"d_{name}": _like(kept[name]) for name in ("q", "k", "v", "gates") if name in kept}
    grads = _call(_backward_kernel, read, write | {"d_state": _like(d_after)}, reverse=True)
    q = jnp.moveaxis(grads["d_q"], 1, 2) if "d_q" in grads else None
    k, v = jnp.moveaxis(grads["d_k"], 1, 2), jnp.moveaxis(grads["d_v"], 1, 2)
    sums, every, beta = jnp.moveaxis(grads["d_gates"], 2, 0)
    return Chunks(q, k, v, one.log_decay_gradient(log_decay, sums, every[..., 0]), beta, None), grads["d_state"]


_run.defvjp(_forward, _backward)


def _read(chunks: Chunks) -> dict[str, Array]:
    """Returns what both kernels read, heads first; ``gates`` are the log decays in two parts, and beta."""
    arrays = {name: jnp.moveaxis(x, 2, 1) for name, x in zip("qkv", chunks[:3], strict=True) if x is not None}
    return arrays | {"gates": jnp.stack([*one.split_decays(chunks.log_decay), chunks.beta], axis=2)}


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _forward_kernel(read: dict, write: dict) -> None:
    after = write["after"]

    @pl.when(pl.program_id(2) == 0)
    def _():
        after[...] = read["state"][...]

    before = after[0]
    after[0], o, inverse = one.forward(before, _chunk(read), lambda system: invert(system, KERNEL), KERNEL)
    if o is not None:
        write["o"][0] = o.astype(write["o"].dtype)
    if "states" in write:
        write["states"][0, 0], write["inverses"][0, 0] = before, inverse


def _backward_kernel(read: dict, write: dict) -> None:
    d_state = write["d_state"]

    @pl.when(pl.program_id(2) == 0)
    def _():
        d_state[...] = read["d_after"][...]

    d_o = read["d_o"][0] if "d_o" in read else None
    state, inverse = read["states"][0, 0], read["inverses"][0, 0]
    d_state[0], grads = one.backward(d_state[0], d_o, state, _chunk(read), lambda _: inverse, KERNEL)
    for name, grad in (("d_q", grads.q), ("d_k", grads.k), ("d_v", grads.v)):
        if grad is not None:
            write[name][0] = grad.astype(write[name].dtype)
    every = jnp.broadcast_to(grads.decay_all[:, None], grads.beta.shape)
    for i, grad in enumerate((grads.decay_sums, every, grads.beta)):
        write["d_gates"][0, 0, i] = grad


def _chunk(read: dict) -> one.Chunk:
    q = read["q"][0] if "q" in read else None
    return one.Chunk(q, read["k"][0], read["v"][0], *(read["gates"][0, 0, i] for i in range(3)))


def _call(
    kernel: Callable, read: dict[str, Array], write: dict[str, jax.ShapeDtypeStruct], *, reverse: bool = False
) -> dict[str, Array]:
    """Runs a kernel for every sequence and group of heads: chunk after chunk, or from the last chunk back."""
    B, N, T, _ = read["k"].shape
    M, G = T // CHUNK_SIZE, min(N, _HEADS)

    def chunk(m):
        return M - 1 - m if reverse else m

    def block(name: str, shape: Sequence[int]) -> pl.BlockSpec:
        match name.removeprefix("d_"):
            case "q" | "k" | "v" | "o":
                return pl.BlockSpec((1, G, CHUNK_SIZE, shape[-1]), lambda b, n, m: (b, n, chunk(m), 0))
            case "gates":
                return pl.BlockSpec((1, 1, 3, G, CHUNK_SIZE), lambda b, n, m: (b, chunk(m), 0, n, 0))
            case "states" | "inverses":
                return pl.BlockSpec((1, 1, G, *shape[-2:]), lambda b, n, m: (b, chunk(m), n, 0, 0))
            case "state" | "after":
                return pl.BlockSpec((1, G, *shape[-2:]), lambda b, n, m: (b, n, 0, 0))
            case _:
                raise AssertionError(f"{name!r} is none of the kernels' arrays")

    whose = "gated_delta" if "q" in read else "gated_delta_map"
    return pl.pallas_call(
        kernel,
        name=f"{whose}_{'backward' if reverse else 'forward'}",
        out_shape=write,
        grid=(B, N // G, M),
        in_specs=[{name: block(name, x.shape) for name, x in read.items()}],
        out_specs={name: block(name, x.shape) for name, x in write.items()},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=_MEMORY
        ),
        interpret=current_platform() != "tpu",
    )(read)
