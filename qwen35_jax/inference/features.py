"""What the tower makes of a request's images and videos: computed once, kept while somebody may have to read it.

Letters: ``R`` rows (one for each data shard), ``P`` patches, ``M`` vectors of a row, ``N`` vectors that a chunk may
need, ``D`` model width, ``L`` layers that take features of their own.
"""

import collections
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qwen35_jax.inference.prompts import Media
from qwen35_jax.sharding import constrain, over_mesh
from qwen35_jax.vision.patches import Patches
from qwen35_jax.vision.tower import VisionFeatures

_ROWS = ("batch", None, None)


@functools.partial(jax.jit, static_argnames="graph")
def look(graph: nnx.GraphDef, weights: nnx.State, patches: Patches) -> VisionFeatures:
    """Runs the tower, given in two parts, over the patches of some requests, one in each row."""
    return _split(nnx.merge(graph, weights)(patches))


@functools.partial(jax.jit, static_argnames=("size", "deep", "dim", "dtype"))
def no_vectors(size: tuple[int, int], deep: int, dim: int, dtype: jnp.dtype) -> VisionFeatures:
    """Makes room for the vectors of a chunk: ``size`` is rows and vectors, ``deep`` is ``L``."""
    main = jnp.zeros((*size, dim), dtype)
    return _split(VisionFeatures(main, jnp.zeros((deep, *size, dim), dtype) if deep else None))


@functools.partial(jax.jit, donate_argnames="vectors")
def hand_out(
    vectors: VisionFeatures, features: VisionFeatures, first: Int[Array, " R"], takes: Bool[Array, " R"]
) -> VisionFeatures:
    """Gives the rows that take some of them the vectors from ``first`` on; where they end, the last one repeats.

    Args:
      vectors: what the rows of a chunk have so far, ``N`` each.
      features: of whole requests, ``M`` each.
    """
    places = first[:, None] + jnp.arange(vectors.main.shape[1])

    def part(old: Float[Array, "R N D"], new: Float[Array, "R M D"]) -> Float[Array, "R N D"]:
        taken = over_mesh(_take, new, places, in_axes=(_ROWS, ("batch", None)), out_axes=_ROWS)
        return jnp.where(takes[:, None, None], taken, old)

    deep = None
    if vectors.deep is not None and features.deep is not None:
        deep = jnp.stack([part(*pair) for pair in zip(vectors.deep, features.deep, strict=True)])
    return _split(VisionFeatures(part(vectors.main, features.main), deep))


def _take(features: Float[Array, "R M D"], places: Int[Array, "R N"]) -> Float[Array, "R N D"]:
    return jax.vmap(lambda vectors, places: jnp.take(vectors, places, axis=0, mode="clip"))(features, places)


def _split(features: VisionFeatures) -> VisionFeatures:
    deep = None if features.deep is None else constrain(features.deep, (None, *_ROWS))
    return VisionFeatures(constrain(features.main, _ROWS), deep)


class Gallery:
    """Keeps features for the requests that wait or have a slot, by data shard.

    One that has read its images may have to give its pages back and read them again. Those are the youngest, so the
    oldest features give way.

    Args:
      most_vectors: of all that is kept, a row. Who reads has its own hold on what it reads.
    """

    def __init__(self, most_vectors: int):
        self._most = most_vectors
        self._wanted: collections.Counter[bytes] = collections.Counter()
        self._kept: dict[tuple[int, bytes], VisionFeatures] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def expect(self, media: Media) -> None:
        """A request with these images and videos waits, or waits again."""
        self._wanted[media.key] += 1

    def dismiss(self, media: Media) -> None:
        """It has left its slot or the queue; features that nobody wants any more are forgotten."""
        self._wanted[media.key] -= 1
        if self._wanted[media.key] <= 0:
            del self._wanted[media.key]
            for place in [place for place in self._kept if place[1] == media.key]:
                del self._kept[place]

    def find(self, media: Media, shard: int) -> VisionFeatures | None:
        """Returns the features of these images and videos, in the row of the shard."""
        return self._kept.get((shard, media.key))

    def keep(self, media: Media, shard: int, features: VisionFeatures) -> None:
        """Keeps features whose row for the shard is that of these images and videos."""
        self._kept[shard, media.key] = features
        # One array may hold the rows of several shards.
        while len(self._kept) > 1 and sum({id(x): x.main.shape[1] for x in self._kept.values()}.values()) > self._most:
            del self._kept[next(iter(self._kept))]
