"""Puts the tower's vectors in the place of image and video tokens.

Letters: ``B`` batch, ``T`` tokens, ``D`` width of the decoder, ``R`` rows of patches, ``M`` vectors of a row, ``L``
layers of the decoder that take features of their own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen35_jax.sharding import over_mesh
from qwen35_jax.vision.tower import VisionFeatures


class Embedded(NamedTuple):
    """What the decoder reads in place of looked-up tokens, in the compute dtype.

    Attributes:
      values: embeddings of text tokens, and vectors of images and videos.
      deep: what is added after layers 0 to ``L - 1``, zero for text tokens; None where the configuration has none.
    """

    values: Float[Array, "B T D"]
    deep: Float[Array, "L B T D"] | None = None


def place_features(
    embeddings: Float[Array, "B T D"], is_vision: Bool[Array, "B T"], features: VisionFeatures
) -> Embedded:
    """Gives the ``k``-th image or video token of the sequences that a row serves the row's ``k``-th vector.

    A token without one takes the row's last vector; whoever makes batches counts them.
    """
    rows = features.main.shape[0]
    B, T = is_vision.shape
    order = jnp.cumsum(is_vision.reshape(rows, -1).astype(jnp.int32), axis=1) - 1
    order = order.reshape(rows, B // rows, T)

    def place(vectors: Float[Array, "R M D"], others: Float[Array, "B T D"] | float) -> Float[Array, "B T D"]:
        axes = ("batch", None, "length")
        taken = over_mesh(_take, vectors, order, in_axes=(("batch", None, None), axes), out_axes=(*axes, None))
        return jnp.where(is_vision[..., None], taken.reshape(B, T, -1).astype(embeddings.dtype), others)

    deep = None if features.deep is None else jnp.stack([place(vectors, 0.0) for vectors in features.deep])
    return Embedded(place(features.main, embeddings), deep)


def _take(vectors: Float[Array, "R M D"], order: Int[Array, "R b T"]) -> Float[Array, "R b T D"]:
    return jax.vmap(lambda vectors, order: jnp.take(vectors, order, axis=0, mode="clip"))(vectors, order)
