"""What a model reads of a batch: its tokens and, where the batch holds images or videos, what the tower makes of them.

Letters: B sequences of a micro-batch, T tokens, R rows of patches, P patches of a row, C values of a patch.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from qwen35_jax.layers.recompute import Remat
from qwen35_jax.model import Qwen35
from qwen35_jax.vision.patches import Patches
from qwen35_jax.vision.placing import Embedded
from qwen35_jax.vision.tower import VisionFeatures
from train.batch import Batch

Value = TypeVar("Value")

_TOKENS, _VISION = ("input_ids", "segment_ids"), ("positions", "pixels", "frames", "places")


class ModelInputs(NamedTuple):
    """What ``forward`` and ``mtp_forward`` take of a batch."""

    tokens: tuple[Array, Array, Array | None]
    """Token ids and segment ids, [B, T] each, and positions [3, B, T]; None for those of text, which are counted."""
    features: VisionFeatures | None
    """What the tower makes of the images; None in a batch of text."""

    def embed(self, model: Qwen35) -> Embedded | None:
        """Returns what the model reads in place of its tokens' embeddings; None leaves it to the model."""
        return None if self.features is None else model.embed(self.tokens[0], self.features)


def inputs_in(batch: Mapping[str, Value]) -> dict[str, Value]:
    """Returns the arrays of a batch, or of its shapes, that a model reads."""
    return {name: batch[name] for name in (*_TOKENS, *_VISION) if name in batch}


def model_inputs(
    model: Qwen35, batch: Batch, *, remat: Remat = "none", dropout_key: PRNGKeyArray | None = None
) -> ModelInputs:
    """Runs the tower over the images of a batch, if there are any.

    Args:
      remat: what the backward pass keeps of each block of the tower.
      dropout_key: turns adapter dropout on.
    """
    input_ids, segment_ids = (batch[name] for name in _TOKENS)
    if "pixels" not in batch:
        return ModelInputs((input_ids, segment_ids, None), None)
    patches = Patches(batch["pixels"], batch["frames"], batch["places"])
    features = model.vision_features(patches, remat=remat, dropout_key=dropout_key)
    return ModelInputs((input_ids, segment_ids, jnp.moveaxis(batch["positions"], -1, 0)), features)
