"""The gated delta rule chunk by chunk: matrix products inside a chunk, a scan over the states between chunks.

README.md derives what is computed here and uses the same symbols.

Letters: B batch, T tokens, N value heads, K key width, V value width, C (and D) position in chunk, M chunks.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.ops.segments import fill_padding

# The delta rule is float32 throughout: no bfloat16 passes on TPU, no TF32 on GPU.
_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
_matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)

# The inverse doubles its blocks inside tiles of this size by masked products of whole tiles, above it block by block.
# Compiled for a TPU (v5e), smaller tiles waste the matrix unit on slivers: the inverse at C = 64 costs 3.8 times as
# much with blocks from size 1 as with masks throughout, and 1.1 times with this tile, at a quarter of the arithmetic.
_TILE = 32


def gated_delta_chunked(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    state: Float32[Array, "B N K V"],
    segment_ids: Int[Array, "B T"] | None = None,
    state_segment_ids: Int[Array, " B"] | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """Carries the state from chunk to chunk by `lax.scan`; see `gated_delta` for arguments and results.

    The backward pass keeps the inputs and the state before each chunk, and computes each chunk again.
    """
    chunks = _split(q, k, v, log_decay, beta, segment_ids, state_segment_ids, chunk_size=chunk_size)

    @partial(jax.checkpoint, prevent_cse=False)
    def step(state, chunk):
        x = _prepare(chunk)
        o, writes = _output(state, x)
        return _next_state(state, x, writes), o.astype(v.dtype)

    state, o = lax.scan(step, state, chunks)
    return _join(o, v), state


def gated_delta_associative(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    state: Float32[Array, "B N K V"],
    segment_ids: Int[Array, "B T"] | None = None,
    state_segment_ids: Int[Array, " B"] | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """Finds all states at once by `lax.associative_scan`; see `gated_delta` for arguments and results.

    Takes logarithmic depth in the number of chunks for about three times the arithmetic of
    `gated_delta_chunked`. The backward pass keeps the same: the inputs and the state before each chunk.
    """
    chunks = _split(q, k, v, log_decay, beta, segment_ids, state_segment_ids, chunk_size=chunk_size)

    def output(state, chunk):
        o, _ = _output(state, _prepare(chunk))
        return o.astype(v.dtype)

    states, state = jax.checkpoint(_boundary_states)(state, chunks)
    return _join(jax.checkpoint(jax.vmap(output))(states, chunks), v), state


class _Chunk(NamedTuple):
    """The inputs of one chunk, in the caller's layout and dtypes; with a leading axis M, of all chunks."""

    q: Float[Array, "*M B C N K"]
    k: Float[Array, "*M B C N K"]
    v: Float[Array, "*M B C N V"]
    log_decay: Float[Array, "*M B C N"]
    beta: Float[Array, "*M B C N"]
    segment_ids: Int[Array, "*M B C"] | None
    documents: Int[Array, "*M B C"] | None
    entry_documents: Int[Array, "*M B"] | None


class _Prepared(NamedTuple):
    """A chunk in float32 with heads before positions, and what its documents and decays allow.

    `decay[c, d]` is the decay from token d to token c, `entry_decay[c]` the one from the state before the
    chunk to token c; both are 0 where there is no path within one document. `system` is A of the README.
    """

    q: Float32[Array, "B N C K"]
    k: Float32[Array, "B N C K"]
    v: Float32[Array, "B N C V"]
    beta: Float32[Array, "B N C"]
    decay: Float32[Array, "B N C C"]
    entry_decay: Float32[Array, "B N C"]
    system: Float32[Array, "B N C C"]


def _split(q, k, v, log_decay, beta, segment_ids, state_segment_ids, *, chunk_size: int) -> _Chunk:
    """Cuts rows into chunks along a new leading axis M; what is missing in the last chunk changes nothing."""
    T = q.shape[1]
    # A row shorter than a chunk takes the next power of two.
    C = min(chunk_size, 1 << (T - 1).bit_length())

    def cut(x: Array, mode: str = "constant") -> Array:
        x = jnp.pad(x, [(0, 0), (0, -T % C)] + [(0, 0)] * (x.ndim - 2), mode=mode)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, C, *x.shape[2:]), 1, 0)

    inputs = [cut(x) for x in (q, k, v, log_decay, beta)]
    if segment_ids is None:
        return _Chunk(*inputs, None, None, None)
    documents, state_documents = fill_padding(segment_ids, state_segment_ids)
    documents = cut(documents, mode="edge")
    entry_documents = jnp.concatenate([state_documents[None], documents[:-1, :, -1]])
    return _Chunk(*inputs, cut(segment_ids), documents, entry_documents)


def _join(o: Float[Array, "M B C N V"], like: Float[Array, "B T N V"]) -> Float[Array, "B T N V"]:
    B, T, N, V = like.shape
    return jnp.moveaxis(o, 0, 1).reshape(B, -1, N, V)[:, :T]


def _prepare(chunk: _Chunk) -> _Prepared:
    q, k, v, log_decay, beta = (jnp.moveaxis(x.astype(jnp.float32), 2, 1) for x in chunk[:5])
    C = k.shape[2]
    connected = np.tri(C, dtype=bool)
    entered = np.ones(C, bool)
    if chunk.documents is not None:
        real = (chunk.segment_ids != 0)[:, None, :]
        q, k, v = (jnp.where(real[..., None], x, 0) for x in (q, k, v))
        log_decay, beta = (jnp.where(real, x, 0) for x in (log_decay, beta))
        connected = connected & (chunk.documents[:, None, :, None] == chunk.documents[:, None, None, :])
        entered = (chunk.documents == chunk.entry_documents[:, None])[:, None, :]
    # Sums from d + 1 to c, each for itself: a difference of two running sums would lose all that is small behind one
    # strong decay. The mask comes before the exponential, so that the gradient meets no 0 * inf.
    after_d = jnp.where(np.tri(C, k=-1, dtype=bool), log_decay[..., None], 0)
    between = _einsum("CE,BNED->BNCD", np.tri(C, dtype=np.float32), after_d)
    decay = jnp.exp(jnp.where(connected, between, -jnp.inf))
    entry_decay = jnp.exp(jnp.where(entered, jnp.cumsum(log_decay, axis=-1), -jnp.inf))
    overlap = beta[..., None] * decay * _einsum("BNCK,BNDK->BNCD", k, k)
    return _Prepared(q, k, v, beta, decay, entry_decay, system=jnp.tril(overlap, -1))


def _output(
    state: Float32[Array, "B N K V"], x: _Prepared
) -> tuple[Float32[Array, "B C N V"], Float32[Array, "B N C V"]]:
    """Returns the chunk's outputs and the rows U that its tokens write along their keys."""
    known = x.entry_decay[..., None] * _einsum("BNCK,BNKV->BNCV", x.k, state)
    writes = _solve(x.system, x.beta[..., None] * (x.v - known))
    scores = x.decay * _einsum("BNCK,BNDK->BNCD", x.q, x.k)
    o = x.entry_decay[..., None] * _einsum("BNCK,BNKV->BNCV", x.q, state)
    o = o + _einsum("BNCD,BNDV->BNCV", scores, writes)
    return jnp.moveaxis(o, 1, 2), writes


def _next_state(
    state: Float32[Array, "B N K V"], x: _Prepared, writes: Float32[Array, "B N C V"]
) -> Float32[Array, "B N K V"]:
    """Decays the state to the end of the chunk and adds the chunk's writes, each decayed from its token on."""
    kept = x.entry_decay[..., -1, None, None] * state
    return kept + _einsum("BNCK,BNCV->BNKV", x.k * x.decay[..., -1, :, None], writes)


def _boundary_states(
    state: Float32[Array, "B N K V"], chunks: _Chunk
) -> tuple[Float32[Array, "M B N K V"], Float32[Array, "B N K V"]]:
    """Returns the state before each chunk and the one after the last, by composing the chunks' maps."""
    transition, written = jax.vmap(_affine_map)(chunks)
    # The first map is applied to the initial state at once; from then on only its value matters.
    written = written.at[0].add(_matmul(transition[0], state))

    def compose(first, second):
        return _matmul(second[0], first[0]), _matmul(second[0], first[1]) + second[1]

    _, after = lax.associative_scan(compose, (transition, written))
    return jnp.concatenate([state[None], after[:-1]]), after[-1]


def _affine_map(chunk: _Chunk) -> tuple[Float32[Array, "B N K K"], Float32[Array, "B N K V"]]:
    """Returns P and R of the map ``S -> P S + R`` that takes the state before the chunk to the one after it."""
    x = _prepare(chunk)
    B, N, _, K = x.k.shape
    # P is the next state of the identity in a chunk without values, R that of zero: both at once, side by side.
    targets = jnp.concatenate([-x.entry_decay[..., None] * x.k, x.v], axis=-1)
    writes = _solve(x.system, x.beta[..., None] * targets)
    start = jnp.broadcast_to(jnp.eye(K, targets.shape[-1], dtype=jnp.float32), (B, N, K, targets.shape[-1]))
    after = _next_state(start, x, writes)
    return after[..., :K], after[..., K:]


@jax.custom_vjp
def _solve(system: Float32[Array, "*S C C"], targets: Float32[Array, "*S C V"]) -> Float32[Array, "*S C V"]:
    """Returns ``(I + system)^-1 targets`` for a strictly lower triangular system, by matrix products alone.

    Products, because they are what a TPU is good at and because batched triangular solves deadlock in
    jaxlib 0.10 on the CPU. Only the part below the diagonal of the system's gradient has a meaning.
    """
    return _matmul(_unit_inverse(system), targets)


def _solve_forward(system, targets):
    inverse = _unit_inverse(system)
    solution = _matmul(inverse, targets)
    return solution, (inverse, solution)


def _solve_backward(residuals, cotangent):
    # d inverse = -inverse (d system) inverse. The gradient -inverse^T (ct targets^T) inverse^T of the system is
    # written with the solution, inverse @ targets, which saves its two products of C x C matrices.
    inverse, solution = residuals
    targets_cotangent = _einsum("...DC,...DV->...CV", inverse, cotangent)
    return -_einsum("...CV,...DV->...CD", targets_cotangent, solution), targets_cotangent


_solve.defvjp(_solve_forward, _solve_backward)


def _unit_inverse(system: Float32[Array, "*S C C"]) -> Float32[Array, "*S C C"]:
    """Inverts ``I + system`` for a strictly lower triangular system, C a power of two, by doubling blocks.

    Once two neighbouring diagonal blocks of size b are inverted, the block below the first of them is
    ``-second (system's block) first``: two products lead from b to 2b, and no power of the system is formed.
    """
    C = system.shape[-1]
    size = min(C, _TILE)
    inverse = _invert_tiles(_blocks(system, size, offset=0, stride=size))
    while size < C:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        below = -_matmul(second, _matmul(_blocks(system, size, offset=size, stride=2 * size), first))
        inverse = jnp.block([[first, jnp.zeros_like(first)], [below, second]])
        size *= 2
    return inverse[..., 0, :, :]


def _invert_tiles(system: Float32[Array, "*S C C"]) -> Float32[Array, "*S C C"]:
    """The same doubling with all blocks of a tile in place: a mask picks the blocks below the diagonal."""
    C = system.shape[-1]

    def below(size: int) -> Array:
        block = np.arange(C) // size
        return jnp.where((block[:, None] == block[None, :] + 1) & (block[:, None] % 2 == 1), system, 0)

    inverse = jnp.eye(C, dtype=jnp.float32) - below(1)
    size = 2
    while size < C:
        inverse = inverse - _matmul(inverse, _matmul(below(size), inverse))
        size *= 2
    return inverse


def _blocks(x: Float32[Array, "*S C C"], size: int, *, offset: int, stride: int) -> Float32[Array, "*S G size size"]:
    """Stacks the square blocks whose columns start at multiples of `stride` and whose rows start `offset` lower."""
    corners = range(0, x.shape[-1], stride)
    return jnp.stack([x[..., i + offset : i + offset + size, i : i + size] for i in corners], axis=-3)
