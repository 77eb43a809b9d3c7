"""What reading images and videos takes beside text: the tower's program, the vectors that wait, and their time.

Letters: ``P`` patches, ``C`` values of a patch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from qwen35_jax.config import VisionConfig
from qwen35_jax.inference.features import look
from qwen35_jax.inference.prefill import ChunkVision
from qwen35_jax.inference.sizes import EngineSizes
from qwen35_jax.model import Qwen35
from qwen35_jax.planning.aot import Compiled, bytes_per_device, compile_abstract
from qwen35_jax.planning.decode_report import Seeing, Work
from qwen35_jax.sharding import array_sharding, num_shards
from qwen35_jax.vision.patches import Patches
from qwen35_jax.vision.tower import VisionFeatures


@dataclass(frozen=True)
class CompiledTower:
    """The tower's program for the largest image; bytes are those of one device.

    Attributes:
      peak: all that is in memory while it runs, the tower's weights left out.
      features: vectors that requests read, and as many that are kept for others.
    """

    peak: int
    features: int
    seeing: Seeing


def compile_tower(model: Qwen35, engine: EngineSizes, mesh: Mesh) -> CompiledTower:
    """Compiles the tower for one image of ``engine.most_patches`` patches in each data shard."""
    assert model.vision is not None and model.config.vision is not None
    compiled: Compiled = compile_abstract(look, *nnx.split(model.vision), _abstract_patches(model, engine, mesh),
                                          mesh=mesh)  # fmt: skip
    weights, config = bytes_per_device(nnx.state(model.vision)), model.config.vision
    vector = config.out_hidden_size * (1 + len(config.deepstack_visual_indexes)) * jnp.dtype(model.dtype).itemsize
    work = tower_work(config, engine.most_patches, weights, num_shards("heads", mesh))
    seeing = Seeing(engine.most_patches, engine.most_vectors, work)
    return CompiledTower(compiled.peak_bytes - weights, 2 * engine.most_vectors * vector, seeing)


def _abstract_patches(model: Qwen35, engine: EngineSizes, mesh: Mesh) -> Patches:
    vision = model.config.vision
    assert vision is not None
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2

    def array(dtype: jnp.dtype, *more: int) -> jax.ShapeDtypeStruct:
        shape = (engine.shards, engine.most_patches, *more)
        place = array_sharding(("batch", *(None,) * (len(shape) - 1)), shape, mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    return Patches(array(jnp.dtype("uint8"), width), array(jnp.dtype("int32")), array(jnp.dtype("int32"), 4))


def chunk_vision(model: Qwen35, engine: EngineSizes) -> ChunkVision:
    """Makes what a chunk with images is given; for ``jax.eval_shape``."""
    vision = model.config.vision
    assert vision is not None
    size, deep = (engine.shards, engine.chunk + 1, vision.out_hidden_size), len(vision.deepstack_visual_indexes)
    more = jnp.zeros((deep, *size), model.dtype) if deep else None
    positions = jnp.zeros((3, engine.shards, engine.chunk), jnp.int32)
    return ChunkVision(VisionFeatures(jnp.zeros(size, model.dtype), more), positions)


def tower_work(
    config: VisionConfig, patches: int, weights: int, tensor: int = 1, *, frame_patches: int | None = None
) -> Work:
    """Counts what one device does for one image or video: products with weights, and attention.

    Args:
      weights: bytes of the tower on a device.
      tensor: devices that share out each layer.
      frame_patches: patches that attend to each other, those of a frame of a video; by default all, as in an image.
    """
    dim, joined = config.hidden_size, config.spatial_merge_size**2
    pixels = config.in_channels * config.temporal_patch_size * config.patch_size**2
    block = 4 * dim * dim + 2 * dim * config.intermediate_size
    merger = joined * dim * (joined * dim + config.out_hidden_size) / joined
    mergers = 1 + len(config.deepstack_visual_indexes)
    per_patch = (
        2 * (pixels * dim + config.depth * block + mergers * merger)
        + config.depth * 4 * (frame_patches or patches) * dim
    )
    # Activations of a block are written and read a few times; a TPU is far from its memory's limit here.
    moved = config.depth * patches * 2 * (8 * dim + 2 * config.intermediate_size) * 2
    return Work(patches * per_patch / tensor, weights + moved / tensor)


def with_tower(hbm: Mapping[str, int], tower: CompiledTower) -> dict[str, int]:
    """Returns the memory of a plan with the vectors of images, and with the tower's run if that is the peak."""
    resident = hbm["weights"] + hbm["states"] + hbm["pages"] + tower.features
    peak = max(hbm["peak"] + tower.features, resident + tower.peak)
    named = {name: hbm[name] for name in ("weights", "states", "pages")}
    rest = {"temporaries": peak - resident, "peak": peak, "capacity": hbm["capacity"]}
    return {**named, "features": tower.features, **rest}
