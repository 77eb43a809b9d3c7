"""The arguments of the gated delta rule cut into whole chunks. Decays say where documents begin.

Letters: ``B`` batch, ``T`` tokens, ``N`` value heads, ``K`` key width, ``V`` value width, ``C`` position in chunk,
``M`` chunks.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from qwen35_jax.ops.gated_delta.single_chunk import FORGOTTEN
from qwen35_jax.ops.segments import fill_padding


class Chunks(NamedTuple):
    """Whole chunks of tokens. ``q`` is None where only the state is wanted.

    A token that does not continue the document of the one before it has the log decay ``FORGOTTEN``: it reads
    exactly nothing of what was before. Padding has a log decay and ``beta`` of 0; ``is_real`` tells it apart.
    """

    q: Float[Array, "B T N K"] | None
    k: Float[Array, "B T N K"]
    v: Float[Array, "B T N V"]
    log_decay: Float32[Array, "B M N C"]
    beta: Float32[Array, "B M N C"]
    is_real: Bool[Array, "B T"] | None


def cut_into_chunks(
    q: Float[Array, "B T N K"] | None,
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    segment_ids: Int[Array, "B T"] | None,
    state_segment_ids: Int[Array, " B"] | None,
    *,
    chunk_size: int | None,
) -> Chunks:
    """Cuts the arguments of ``gated_delta`` into whole chunks. The tokens that fill up the last one change nothing."""
    T = k.shape[1]
    C = pick_chunk_size(chunk_size, v)
    log_decay, beta = log_decay.astype(jnp.float32), beta.astype(jnp.float32)
    is_real = None
    if segment_ids is not None:
        documents, state_documents = fill_padding(segment_ids, state_segment_ids)
        is_real = segment_ids != 0
        continues = documents == jnp.concatenate([state_documents[:, None], documents[:, :-1]], axis=1)
        log_decay = jnp.where(is_real[..., None], log_decay, 0)
        log_decay = jnp.where(continues[..., None], log_decay, FORGOTTEN)
        beta = jnp.where(is_real[..., None], beta, 0)

    def fill(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, -T % C)] + [(0, 0)] * (x.ndim - 2)) if T % C else x

    def cut(x: Float32[Array, "B T N"]) -> Float32[Array, "B M N C"]:
        x = fill(x)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, C, x.shape[2]), 2, 3)

    q, is_real = (None if x is None else fill(x) for x in (q, is_real))
    return Chunks(q, fill(k), fill(v), cut(log_decay), cut(beta), is_real)


def pick_chunk_size(chunk_size: int | None, v: Float[Array, "B T N V"]) -> int:
    """Returns the tokens per chunk: by default 128 for bfloat16 and 64 for float32, less for few tokens.

    On a TPU, for which bfloat16 is meant, chunks of 128 fill the matrix unit. A CPU, where one trains in float32, has
    less to do with 64: forward and backward of 4,096 tokens and 16 heads take 1.0 against 1.5 s on one core.
    """
    if chunk_size is None:
        chunk_size = 128 if v.dtype == jnp.bfloat16 else 64
    # The next power of two; a chunk has two halves.
    return min(chunk_size, max(2, 1 << (v.shape[1] - 1).bit_length()))
