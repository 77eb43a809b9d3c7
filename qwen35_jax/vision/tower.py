"""The vision tower: patches of images and videos become vectors that take the place of token embeddings.

Letters: ``R`` rows, ``P`` patches of a row, ``C`` values of a patch, ``D`` width of the tower, ``F`` hidden width,
``M`` tokens of a row (groups of patches), ``O`` width of the decoder, ``L`` layers of the decoder that take features of
their own.

Source: ``Qwen3_5VisionModel`` in transformers; ``Qwen3VLVisionModel`` for the features of inner blocks (DeepStack).
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from qwen35_jax.config import VisionConfig
from qwen35_jax.layers.linear import Linear
from qwen35_jax.layers.norms import LayerNorm
from qwen35_jax.layers.parameters import Parameters
from qwen35_jax.layers.recompute import Remat, block_input, recomputed, rematerialized
from qwen35_jax.ops.attention.sharded import frame_attention_sharded
from qwen35_jax.ops.rotary import apply_rotary, axial_angles
from qwen35_jax.sharding import constrain
from qwen35_jax.vision.patches import Patches

_EPS = 1e-6
_THETA = 10_000.0
_PATCHES = ("batch", "length", "features")
# Folded into the dropout keys, from this number on those of the mergers.
_MERGERS = 1_000


class VisionFeatures(NamedTuple):
    """What the tower makes of a batch of patches, in the compute dtype.

    Attributes:
      main: the vectors that replace the embeddings of image and video tokens, row by row in reading order.
      deep: those that are added after the decoder's first ``L`` layers; None where the configuration has none.
    """

    main: Float[Array, "R M O"]
    deep: Float[Array, "L R M O"] | None = None


class PatchProjection(nnx.Module):
    """The convolution over whole patches: a product of their values with a weight [channels, frames, side, side, D]."""

    def __init__(self, config: VisionConfig, *, make: Parameters):
        side = config.patch_size
        shape = (config.in_channels, config.temporal_patch_size, side, side, config.hidden_size)
        self.weight = make.normal(shape, (None, None, None, None, "embed"))
        self.bias = make.constant((config.hidden_size,), ("norm",), fill=0.0)

    def __call__(self, pixels: Float[Array, "R P C"]) -> Float[Array, "R P D"]:
        weight = self.weight[...].astype(pixels.dtype)
        return pixels @ weight.reshape(-1, weight.shape[-1]) + self.bias[...].astype(pixels.dtype)


class PatchEmbedding(nnx.Module):
    """Holds the projection under the name that it has in the checkpoint."""

    def __init__(self, config: VisionConfig, *, make: Parameters):
        self.proj = PatchProjection(config, make=make)


class PositionGrid(nnx.Module):
    """Learned vectors on a square grid, stretched over each picture: its corners are the corners of the grid."""

    def __init__(self, config: VisionConfig, *, make: Parameters):
        self.side = math.isqrt(config.num_position_embeddings)
        self.weight = make.normal((config.num_position_embeddings, config.hidden_size), (None, "embed"))

    def __call__(self, places: Int[Array, "R P 4"], *, dtype: DTypeLike) -> Float[Array, "R P D"]:
        """Mixes the four nearest vectors of each patch, linearly along both axes, in float32."""
        (low, high, part), (left, right, across) = (
            self._neighbours(places[..., i], places[..., 2 + i]) for i in (0, 1)
        )
        grid = constrain(self.weight[...], (None, None))
        mixed = 0.0
        for row, row_share in ((low, 1 - part), (high, part)):
            for column, share in ((left, 1 - across), (right, across)):
                vectors = jnp.take(grid, row * self.side + column, axis=0, mode="clip").astype(jnp.float32)
                mixed = mixed + vectors * (row_share * share)[..., None]
        return jnp.asarray(mixed, dtype)

    def _neighbours(
        self, index: Int[Array, "R P"], count: Int[Array, "R P"]
    ) -> tuple[Int[Array, "R P"], Int[Array, "R P"], Float[Array, "R P"]]:
        """Returns the grid lines on both sides of a patch, and how far it is on the way from one to the other."""
        position = index.astype(jnp.float32) * ((self.side - 1) / jnp.maximum(count - 1, 1).astype(jnp.float32))
        low = jnp.floor(position).astype(jnp.int32)
        return low, jnp.minimum(low + 1, self.side - 1), position - low


class VisionAttention(nnx.Module):
    """Attention of all patches of a frame to each other; ``qkv`` computes queries, keys, values one after the other."""

    def __init__(self, config: VisionConfig, *, make: Parameters):
        dim, heads = config.hidden_size, config.num_heads
        self.num_heads = heads
        self.qkv = Linear("qkv", dim, 3 * dim, ("embed", ("heads", heads)), make=make, bias=True)
        self.proj = Linear("proj", dim, dim, (("heads", heads), "embed"), make=make, bias=True)

    def __call__(
        self,
        x: Float[Array, "R P D"],
        cos: Float[Array, "R P half"],
        sin: Float[Array, "R P half"],
        frames: Int[Array, "R P"],
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "R P D"]:
        R, P, D = x.shape
        qkv = self.qkv(x, dropout_key).reshape(R, P, 3, self.num_heads, -1)
        q, k, v = (constrain(qkv[:, :, i], ("batch", "length", "heads", None)) for i in range(3))
        out = frame_attention_sharded(apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v, frames)
        return self.proj(out.reshape(R, P, D), dropout_key)


class VisionMLP(nnx.Module):
    """Computes ``fc2(gelu(fc1(x)))`` with the approximation of GELU by tanh."""

    def __init__(self, config: VisionConfig, *, make: Parameters):
        dim, hidden = config.hidden_size, config.intermediate_size
        self.linear_fc1 = Linear("linear_fc1", dim, hidden, ("embed", "mlp"), make=make, bias=True)
        self.linear_fc2 = Linear("linear_fc2", hidden, dim, ("mlp", "embed"), make=make, bias=True)

    def __call__(self, x: Float[Array, "R P D"], dropout_key: PRNGKeyArray | None = None) -> Float[Array, "R P D"]:
        hidden = _gelu(self.linear_fc1(x, dropout_key), True)
        return self.linear_fc2(constrain(hidden, ("batch", "length", "mlp")), dropout_key)


class VisionBlock(nnx.Module):
    """One block: attention and an MLP, each behind a norm and a residual."""

    def __init__(self, config: VisionConfig, *, make: Parameters):
        self.norm1 = LayerNorm(config.hidden_size, _EPS, make=make)
        self.attn = VisionAttention(config, make=make)
        self.norm2 = LayerNorm(config.hidden_size, _EPS, make=make)
        self.mlp = VisionMLP(config, make=make)

    def __call__(
        self,
        x: Float[Array, "R P D"],
        cos: Float[Array, "R P half"],
        sin: Float[Array, "R P half"],
        frames: Int[Array, "R P"],
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "R P D"]:
        x = x + self.attn(self.norm1(x), cos, sin, frames, dropout_key)
        x = x + self.mlp(self.norm2(x), dropout_key)
        return constrain(x, _PATCHES)


class Merger(nnx.Module):
    """Joins the patches of a token and projects them to the decoder's width; with the exact GELU.

    Args:
      norm_after_joining: normalise the joined vectors, as the mergers of inner blocks do, not each patch.
    """

    def __init__(self, config: VisionConfig, *, make: Parameters, norm_after_joining: bool = False):
        self.num_joined = config.spatial_merge_size**2
        wide = config.hidden_size * self.num_joined
        self.norm_after_joining = norm_after_joining
        self.norm = LayerNorm(wide if norm_after_joining else config.hidden_size, _EPS, make=make)
        self.linear_fc1 = Linear("linear_fc1", wide, wide, ("embed", "mlp"), make=make, bias=True)
        self.linear_fc2 = Linear("linear_fc2", wide, config.out_hidden_size, ("mlp", "embed"), make=make, bias=True)

    def __call__(self, x: Float[Array, "R P D"], dropout_key: PRNGKeyArray | None = None) -> Float[Array, "R M O"]:
        R, P, _ = x.shape
        x = x if self.norm_after_joining else self.norm(x)
        x = x.reshape(R, P // self.num_joined, -1)
        x = self.norm(x) if self.norm_after_joining else x
        hidden = constrain(_gelu(self.linear_fc1(x, dropout_key), False), ("batch", "length", "mlp"))
        return constrain(self.linear_fc2(hidden, dropout_key), _PATCHES)


class VisionTower(nnx.Module):
    """The whole tower. ``blocks`` holds all blocks, stacked along the first axis of each weight."""

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, make: Parameters):
        """Makes a tower with random weights; ``dtype`` is what it computes in."""
        self.config, self.dtype = config, dtype
        self.patch_embed = PatchEmbedding(config, make=make)
        self.pos_embed = PositionGrid(config, make=make)
        stacked = Parameters(make.rngs, make.dtype, make.initializer_range, stack=config.depth)
        self.blocks = VisionBlock(config, make=stacked)
        self.merger = Merger(config, make=make)
        deep = [Merger(config, make=make, norm_after_joining=True) for _ in config.deepstack_visual_indexes]
        self.deepstack_merger_list = nnx.List(deep)

    def __call__(
        self, patches: Patches, *, remat: Remat = "none", dropout_key: PRNGKeyArray | None = None
    ) -> VisionFeatures:
        """Returns a vector for every ``spatial_merge_size ** 2`` patches; those of padding mean nothing.

        Args:
          remat: what the backward pass keeps of each block; it computes the rest again.
          dropout_key: turns adapter dropout on.
        """
        frames, places = patches.frames, patches.places
        x = self.patch_embed.proj(constrain(self._normalized(patches.pixels), _PATCHES))
        x = constrain(x + self.pos_embed(places, dtype=self.dtype), _PATCHES)
        width = self.config.hidden_size // self.config.num_heads
        cos, sin = axial_angles(places[..., 0], places[..., 1], theta=_THETA, width=width)
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.depth)
        graphdef, weights = nnx.split(self.blocks)

        def run_block(x, block):
            weights, key = block
            return nnx.merge(graphdef, weights)(block_input(x), cos, sin, frames, key), None

        def merge(merger, number, x):
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, _MERGERS + number)
            return merger(x, key)

        deep, run = [], rematerialized(run_block, remat)
        cuts = [0, *(index + 1 for index in self.config.deepstack_visual_indexes), self.config.depth]
        for number, (first, last) in enumerate(itertools.pairwise(cuts), start=1):
            part = weights, keys
            if last - first < self.config.depth:
                part = jax.tree.map(lambda stack, first=first, last=last: stack[first:last], part)
            x, _ = jax.lax.scan(run, x, part, length=last - first)
            if number <= len(self.deepstack_merger_list):
                deep.append(merge(self.deepstack_merger_list[number - 1], number, x))
        return VisionFeatures(merge(self.merger, 0, x), jnp.stack(deep) if deep else None)

    def _normalized(self, pixels: Float[Array, "R P C"] | UInt8[Array, "R P C"]) -> Float[Array, "R P C"]:
        if jnp.issubdtype(pixels.dtype, jnp.integer):
            pixels = pixels.astype(jnp.float32) / 127.5 - 1
        return pixels.astype(self.dtype)


@functools.partial(recomputed, static_argnums=1)
def _gelu(x: Float[Array, "*L F"], approximate: bool) -> Float[Array, "*L F"]:
    return jax.nn.gelu(x.astype(jnp.float32), approximate=approximate).astype(x.dtype)
