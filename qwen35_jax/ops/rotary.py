"""Rotary position embedding: partial with interleaved multimodal sections for tokens, axial for patches.

Letters: ``B`` batch, ``T`` tokens (or patches), ``N`` heads, ``H`` head width, ``R`` frequencies (half the rotated
width).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotary_angles(
    position_ids: Int[Array, "3 B T"] | Int[Array, "B T"], *, theta: float, sections: tuple[int, int, int]
) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
    """Returns cosine and sine of every token's angles, in float32.

    Frequency ``i`` of ``R = sum(sections)`` is ``theta ** (-i / R)`` and turns with the height where ``i % 3 == 1``,
    with the width where ``i % 3 == 2`` (each for as many frequencies as its section has), else with the time. For
    text the three positions are equal and this is plain rotary embedding.

    Args:
      position_ids: one position a token, or three: time, height, width.

    Source: ``Qwen3_5TextRotaryEmbedding`` in transformers.
    """
    num_frequencies = sum(sections)
    index = np.arange(num_frequencies)
    axis = np.zeros_like(index)
    for which in (1, 2):
        axis[(index % 3 == which) & (index < 3 * sections[which])] = which
    inverse_frequency = jnp.asarray(theta ** (-index / num_frequencies), jnp.float32)
    positions = position_ids.astype(jnp.float32)
    if positions.ndim == 3:
        angles = jnp.moveaxis(positions, 0, -1)[..., axis] * inverse_frequency
    else:
        angles = positions[..., None] * inverse_frequency
    return jnp.cos(angles), jnp.sin(angles)


def axial_angles(
    rows: Int[Array, "B T"], columns: Int[Array, "B T"], *, theta: float, width: int
) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
    """Returns cosine and sine of the angles of patches in a picture, in float32, for a head of ``width`` features.

    The first half of the ``R = width / 2`` frequencies turns with the row. The second half has the same frequencies and
    turns with the column.

    Source: ``Qwen3_5VisionRotaryEmbedding`` in transformers.
    """
    inverse_frequency = jnp.asarray(theta ** (-np.arange(0, width // 2, 2) / (width // 2)), jnp.float32)
    angles = [places[..., None].astype(jnp.float32) * inverse_frequency for places in (rows, columns)]
    both = jnp.concatenate(angles, axis=-1)
    return jnp.cos(both), jnp.sin(both)


def apply_rotary(
    x: Float[Array, "B T N H"], cos: Float[Array, "#B T R"], sin: Float[Array, "#B T R"]
) -> Float[Array, "B T N H"]:
    """Rotates the first ``2 R`` of ``H`` features in pairs ``(i, i + R)``, in float32; returns the dtype of ``x``."""
    width = cos.shape[-1]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = (x[..., i * width : (i + 1) * width].astype(jnp.float32) for i in (0, 1))
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., 2 * width :]], axis=-1)
