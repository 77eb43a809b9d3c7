"""The configuration of the vision tower, as ``vision_config`` of a Hugging Face ``config.json``."""

import math
from dataclasses import dataclass

_ACTIVATION = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower, which reads images and videos as patches.

    ``deepstack_visual_indexes`` names blocks, in ascending order, whose output goes to the decoder's first layers too.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    deepstack_visual_indexes: tuple[int, ...] = ()
    hidden_act: str = _ACTIVATION
    in_channels: int = 3
    initializer_range: float = 0.02
    num_position_embeddings: int = 2304
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2

    def __post_init__(self):
        if self.hidden_act != _ACTIVATION:
            raise ValueError(f"vision_config has hidden_act={self.hidden_act!r}; only {_ACTIVATION!r} is supported.")
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"vision_config has hidden_size={self.hidden_size}, which must be a multiple of 4 x num_heads="
                f"{4 * self.num_heads}: each head rotates pairs of features by row and by column."
            )
        if math.isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
            raise ValueError(
                f"vision_config has num_position_embeddings={self.num_position_embeddings}; they lie on a square grid, "
                "so give a square number such as 2304."
            )
        indexes = self.deepstack_visual_indexes
        if list(indexes) != sorted(set(indexes)) or any(not 0 <= index < self.depth for index in indexes):
            raise ValueError(
                f"vision_config has deepstack_visual_indexes={list(indexes)}; they must be blocks below "
                f"depth={self.depth}, each once and in ascending order."
            )

    def check_fit(self, *, hidden_size: int, num_hidden_layers: int) -> None:
        """Raises ``ValueError`` if a decoder of this width and depth cannot take what the tower makes."""
        if self.out_hidden_size != hidden_size:
            raise ValueError(
                f"vision_config has out_hidden_size={self.out_hidden_size}, but the decoder's hidden_size is "
                f"{hidden_size}; make them equal."
            )
        if len(self.deepstack_visual_indexes) > num_hidden_layers:
            raise ValueError(
                f"deepstack_visual_indexes={list(self.deepstack_visual_indexes)} feeds more layers than the "
                f"{num_hidden_layers} of the decoder; name fewer blocks."
            )
