"""What the prefill program is given: the next chunks of tenants that read, and the vectors of their images and videos.

Letters: ``R`` rows (one for each data shard), ``C`` tokens of a chunk.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from qwen35_jax.inference.features import Gallery, hand_out, look, no_vectors
from qwen35_jax.inference.metrics import Metrics
from qwen35_jax.inference.prefill import Chunk, ChunkVision
from qwen35_jax.inference.prompts import Media
from qwen35_jax.inference.scheduler import Tenant
from qwen35_jax.inference.sizes import EngineSizes
from qwen35_jax.model import Qwen35
from qwen35_jax.sharding import array_sharding
from qwen35_jax.vision.patches import Patches, bucket_size, pack_patches


class Kind(NamedTuple):
    """Which program reads a tenant's next chunk; it depends on its prompt alone.

    Attributes:
      size: ``C``.
      scored: whether the tokens are scored.
      sees: whether the chunk, or the token after it, is part of an image or a video or comes after one.
    """

    size: int
    scored: bool
    sees: bool


def kind_of(tenant: Tenant, sizes: EngineSizes) -> Kind:
    """Returns the kind of a tenant's next chunk."""
    rest, media = tenant.to_read - tenant.read, tenant.request.media
    size = sizes.chunk if rest > sizes.chunk // 4 else sizes.small_chunk
    sees = media is not None and media.begins <= tenant.read + min(size, rest)
    return Kind(size, tenant.request.row is None, sees)


def chunk_of(readers: Sequence[Tenant], size: int, *, rows: int, table: np.ndarray) -> Chunk:
    """Returns the next tokens of some tenants, each in the row of its shard."""
    ids, after, segment_ids = np.zeros((3, rows, size), np.int32)
    slots, lengths = np.full(rows, -1, np.int32), np.zeros(rows, np.int32)
    pages = np.zeros((rows, table.shape[1]), np.int32)
    for tenant in readers:
        row, start = tenant.shard, tenant.read
        text = np.asarray(tenant.request.prompt[start : start + size + 1], np.int32)
        real = min(size, tenant.to_read - start)
        ids[row, :real], after[row, :real], segment_ids[row, :real] = text[:real], text[1 : real + 1], 1
        slots[row], lengths[row], pages[row] = tenant.slot, start, table[tenant.slot]
    return Chunk(*map(jnp.asarray, (slots, ids, after, segment_ids, pages, lengths)))


class Eye:
    """Runs the tower for tenants, once for each, and gives their chunks the vectors that they need."""

    def __init__(self, sizes: EngineSizes, gallery: Gallery, metrics: Metrics, mesh: Mesh | None):
        self._sizes, self._gallery, self._metrics = sizes, gallery, metrics
        self._mesh = mesh if mesh is not None and mesh.size > 1 else None

    def see(self, model: Qwen35, readers: Sequence[Tenant], size: int) -> ChunkVision:
        """Returns what the next chunks of these tenants, all with images or videos, need besides their tokens."""
        vision, rows = model.config.vision, self._sizes.shards
        assert vision is not None
        pairs = [(tenant, media) for tenant in readers if (media := tenant.request.media) is not None]
        self._look(model, [(tenant, media) for tenant, media in pairs if tenant.looks and tenant.features is None])
        deep = len(vision.deepstack_visual_indexes)
        vectors = no_vectors((rows, size + 1), deep, vision.out_hidden_size, model.dtype)
        # One array may hold the rows of several tenants.
        several = {id(tenant.features): tenant.features for tenant in readers if tenant.features is not None}
        for features in several.values():
            first, takes = np.zeros(rows, np.int32), np.zeros(rows, bool)
            for tenant, media in pairs:
                if tenant.features is features:
                    first[tenant.shard], takes[tenant.shard] = media.num_before(tenant.read), True
            vectors = hand_out(vectors, features, jnp.asarray(first), jnp.asarray(takes))
        positions = np.zeros((3, rows, size), np.int32)
        for tenant, media in pairs:
            positions[:, tenant.shard] = media.positions_of(tenant.read, tenant.read + size)
        return ChunkVision(vectors, jnp.asarray(positions))

    def _look(self, model: Qwen35, pairs: Sequence[tuple[Tenant, Media]]) -> None:
        """Gives tenants what is kept of their images and videos, and runs the tower for the others."""
        groups: dict[tuple[int, np.dtype], list[tuple[Tenant, Media]]] = {}
        for tenant, media in pairs:
            tenant.features = self._gallery.find(media, tenant.shard)
            if tenant.features is None:
                groups.setdefault((bucket_size(len(media.pixels)), media.pixels.dtype), []).append((tenant, media))
        for (capacity, _), group in groups.items():
            features = look(*nnx.split(model.vision), self._packed(model, group, capacity))
            self._metrics.tower_runs += 1
            for tenant, media in group:
                tenant.features = features
                self._gallery.keep(media, tenant.shard, features)
                self._metrics.patches += len(media.pixels)

    def _packed(self, model: Qwen35, pairs: Sequence[tuple[Tenant, Media]], capacity: int) -> Patches:
        """Returns the patches of these tenants, each in the row of its shard, with nothing in the other rows."""
        _, some = pairs[0]
        rows = [(some.pixels[:0], some.grids[:0])] * self._sizes.shards
        for tenant, media in pairs:
            rows[tenant.shard] = media.pixels, media.grids
        assert model.config.vision is not None
        packed = pack_patches(rows, capacity=capacity, merge_size=model.config.vision.spatial_merge_size)
        return Patches(*map(self._placed, packed))

    def _placed(self, array: np.ndarray) -> jax.Array:
        """Gives each data shard its rows."""
        if self._mesh is None:
            return jnp.asarray(array)
        axes = ("batch", *(None,) * (array.ndim - 1))
        place = array_sharding(axes, array.shape, self._mesh)
        return jax.make_array_from_callback(array.shape, place, lambda index: array[index])
