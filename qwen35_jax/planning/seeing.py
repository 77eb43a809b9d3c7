"""What reading images and videos takes beside text: the tower's programs, the vectors that wait, and their time.

Three programs read an image or a video: the tower runs once; ``hand_out`` gives each chunk of the prompt the vectors
that it needs; ``prefill`` reads the chunk. The first two are compiled here, the third as that of text is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from qwen35_jax.config import VisionConfig
from qwen35_jax.inference.features import hand_out, look
from qwen35_jax.inference.prefill import ChunkVision
from qwen35_jax.inference.sizes import EngineSizes
from qwen35_jax.model import Qwen35
from qwen35_jax.planning.aot import bytes_per_device, compile_abstract
from qwen35_jax.planning.decode_report import Sight, Work
from qwen35_jax.planning.flops import vision_flops_per_patch
from qwen35_jax.processing.settings import VideoSettings
from qwen35_jax.sharding import array_sharding
from qwen35_jax.vision.patches import Patches
from qwen35_jax.vision.tower import VisionFeatures

# Around the pads of two frames: their time, such as <383.5 seconds>, and the marks of their beginning and end.
_TOKENS_OF_TIME = 10


@dataclass(frozen=True)
class CompiledTower:
    """The programs that make vectors of the largest image and hand them out; bytes are those of one device.

    Attributes:
      peak: all that is in memory while one of them runs, the tower's weights left out.
      features: vectors that requests read, and as many that are kept for others.
    """

    peak: int
    features: int


def compile_tower(model: Qwen35, engine: EngineSizes, mesh: Mesh) -> CompiledTower:
    """Compiles the tower for one image of ``engine.most_patches`` patches in each data shard.

    A video of as many patches runs the same programs: what is of one frame is data to them.
    """
    assert model.vision is not None and model.config.vision is not None
    rows, vision = engine.shards, model.config.vision
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2

    def patches(dtype: str, *more: int) -> Any:
        return _by_shard((rows, engine.most_patches, *more), jnp.dtype(dtype), mesh)

    batch = Patches(patches("uint8", width), patches("int32"), patches("int32", 4))
    tower = compile_abstract(look, *nnx.split(model.vision), batch, mesh=mesh)
    which = (jax.ShapeDtypeStruct((rows,), jnp.dtype(dtype)) for dtype in ("int32", "bool"))
    taken, features = (_vectors(model, rows, count, mesh) for count in (engine.chunk + 1, engine.most_vectors))
    handing = compile_abstract(hand_out, taken, features, *which, mesh=mesh)
    peak = max(tower.peak_bytes - bytes_per_device(nnx.state(model.vision)), handing.peak_bytes)
    return CompiledTower(peak, 2 * bytes_per_device(features))


def chunk_vision(model: Qwen35, engine: EngineSizes, mesh: Mesh) -> ChunkVision:
    """Returns the shapes of what a chunk with images is given."""
    positions: Any = jax.ShapeDtypeStruct((3, engine.shards, engine.chunk), jnp.dtype("int32"))
    return ChunkVision(_vectors(model, engine.shards, engine.chunk + 1, mesh), positions)


def _vectors(model: Qwen35, rows: int, count: int, mesh: Mesh) -> VisionFeatures:
    """Returns the shapes of ``count`` vectors a row, placed as the tower leaves them."""
    vision = model.config.vision
    assert vision is not None
    shape, deep = (rows, count, vision.out_hidden_size), len(vision.deepstack_visual_indexes)
    more = _by_shard((deep, *shape), model.dtype, mesh, first=1) if deep else None
    return VisionFeatures(_by_shard(shape, model.dtype, mesh), more)


def _by_shard(shape: tuple[int, ...], dtype: jnp.dtype, mesh: Mesh, *, first: int = 0) -> Any:
    """Returns the shape of an array whose rows, along the axis ``first``, are those of the data shards."""
    axes = (*(None,) * first, "batch", *(None,) * (len(shape) - first - 1))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=array_sharding(axes, shape, mesh))


def sights(
    config: VisionConfig, engine: EngineSizes, look: Callable[[int, int], Work], chunk: Callable[[int], Work]
) -> tuple[Sight, ...]:
    """Returns what the largest image takes, and the longest video of the published processors.

    Args:
      look: what one device does for so many patches, of which so many are of one frame.
      chunk: what one device does for one chunk of a prompt of so many tokens.
    """
    limits, depth = VideoSettings(), config.temporal_patch_size
    most = limits.max_pixels // (depth * config.patch_size**2)

    def sight(kind: Literal["image", "video"], frames: int, patches: int) -> Sight:
        """Lets two frames of a video share their patches, and have a time."""
        pairs, is_video = max(frames // depth, 1), kind == "video"
        tokens = patches // config.spatial_merge_size**2 + is_video * pairs * _TOKENS_OF_TIME
        tower = look(patches, patches // pairs)
        return Sight(kind, frames, patches, tokens, tower, chunk(tokens), -(-tokens // engine.chunk))

    image, video = sight("image", 1, engine.most_patches), sight("video", limits.max_frames, most)
    return (image, video) if most <= engine.most_patches else (image,)


def tower_work(config: VisionConfig, patches: int, frame_patches: int, weights: int, tensor: int = 1) -> Work:
    """Counts what one device does for one image or video.

    Args:
      frame_patches: patches of an image or of a frame of a video, which attend to each other.
      weights: bytes of the tower on a device.
      tensor: devices that share out each layer.
    """
    flops = patches * vision_flops_per_patch(config, frame_patches=frame_patches)
    # Activations of a block are written and read a few times; a TPU is far from its memory's limit here.
    moved = config.depth * patches * 2 * (8 * config.hidden_size + 2 * config.intermediate_size) * 2
    return Work(flops / tensor, weights + moved / tensor)


def with_tower(hbm: Mapping[str, int], tower: CompiledTower) -> dict[str, int]:
    """Returns the memory of a plan with the vectors of images, and with the tower's run if that is the peak."""
    resident = hbm["weights"] + hbm["states"] + hbm["pages"] + tower.features
    peak = max(hbm["peak"] + tower.features, resident + tower.peak)
    named = {name: hbm[name] for name in ("weights", "states", "pages")}
    rest = {"temporaries": peak - resident, "peak": peak, "capacity": hbm["capacity"]}
    return {**named, "features": tower.features, **rest}
