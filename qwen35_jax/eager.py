"""How the model's methods are called by hand: checks, defaults, images and videos, and one compiled program a shape.

Letters: ``B`` batch, ``T`` tokens, ``P`` patches, ``C`` values of a patch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int
from numpy.typing import ArrayLike

from qwen35_jax.config import ModelConfig
from qwen35_jax.vision.mrope import check_needs_no_pixels, mrope_positions
from qwen35_jax.vision.patches import Patches, check_patches, pack_patches


class Inputs(NamedTuple):
    """The inputs of a call on the device."""

    input_ids: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"] | None
    position_ids: Int[Array, "*axes B T"] | None
    patches: Patches | None


@runtime_checkable
class EagerMethod(Protocol):
    """A method of the model as its users call it."""

    def __call__(
        self,
        input_ids: ArrayLike,
        segment_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        *,
        pixels: ArrayLike | None = None,
        grids: ArrayLike | None = None,
    ) -> Array: ...


def eager(method: Callable[[Any, Inputs], Array]) -> EagerMethod:
    """Lets a method be called with lists and arrays of any kind: checks their shapes and runs it compiled.

    A program is compiled once for each structure of model and arguments. Code that is compiled itself calls
    ``forward`` and ``mtp_forward``.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def run(graphdef, weights, inputs):
        return method(nnx.merge(graphdef, weights), inputs)

    @functools.wraps(method)
    def call(model, input_ids, segment_ids=None, position_ids=None, *, pixels=None, grids=None):
        inputs = _checked(input_ids, segment_ids, position_ids)
        if pixels is not None or grids is not None:
            if model.vision is None:
                raise ValueError(
                    "pixels were given to a model without a vision tower; load a checkpoint that has one, with "
                    "vision=True."
                )
            inputs = _with_vision(model.config, inputs, pixels, grids)
        elif not isinstance(input_ids, jax.Array):
            # Ids on a device are not fetched for this check.
            check_needs_no_pixels("input_ids", np.asarray(input_ids), model.config)
        return run(*nnx.split(model), inputs)

    return cast(EagerMethod, call)


def _checked(input_ids: ArrayLike, segment_ids: ArrayLike | None, position_ids: ArrayLike | None) -> Inputs:
    ids = jnp.asarray(input_ids)
    segments = None if segment_ids is None else jnp.asarray(segment_ids)
    positions = None if position_ids is None else jnp.asarray(position_ids)
    if ids.ndim != 2:
        raise ValueError(f"input_ids has shape {ids.shape}; expected (batch, tokens).")
    if segments is not None and segments.shape != ids.shape:
        raise ValueError(f"segment_ids has shape {segments.shape}; expected that of input_ids, {ids.shape}.")
    if positions is not None and positions.shape not in (ids.shape, (3, *ids.shape)):
        raise ValueError(f"position_ids has shape {positions.shape}; expected {ids.shape} or {(3, *ids.shape)}.")
    return Inputs(ids, segments, positions, None)


def _with_vision(config: ModelConfig, inputs: Inputs, pixels: ArrayLike | None, grids: ArrayLike | None) -> Inputs:
    """Adds the patches of all sequences, as one row, and by default the positions that they give to the tokens."""
    if pixels is None or grids is None:
        raise ValueError("pixels and grids belong together; give both, as the processor returns them, or neither.")
    vision = config.vision
    assert vision is not None, "only a configuration with vision makes a tower"
    pixels, grids = np.asarray(pixels), np.asarray(grids)
    check_patches(pixels, grids, vision)
    patches = pack_patches([(pixels, grids)], merge_size=vision.spatial_merge_size)
    ids = np.asarray(inputs.input_ids)
    wanted = np.isin(ids, (config.image_token_id, config.video_token_id)).sum()
    present = len(pixels) // vision.spatial_merge_size**2
    if wanted != present:
        raise ValueError(
            f"input_ids has {wanted} image and video tokens, but the patches make {present}; give the ids that the "
            "processor made with them."
        )
    positions = inputs.position_ids
    if positions is None:
        segments = None if inputs.segment_ids is None else np.asarray(inputs.segment_ids)
        positions, _ = mrope_positions(
            ids, grids, segments, image_token=config.image_token_id, video_token=config.video_token_id,
            merge_size=vision.spatial_merge_size,
        )  # fmt: skip
        positions = jnp.asarray(positions)
    return inputs._replace(position_ids=positions, patches=Patches(*map(jnp.asarray, patches)))
