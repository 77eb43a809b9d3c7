"""How a run is laid out over devices and memory: what changes only the order of floating-point sums."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from qwen35_jax.layers.recompute import Remat
from qwen35_jax.ops.gated_delta import DeltaRule
from qwen35_jax.sharding import MeshConfig


@dataclass(frozen=True)
class Layout:
    """What changes only the last digits of a run: a run may resume with another layout, with a warning."""

    mesh: MeshConfig = field(default_factory=MeshConfig)
    remat: Annotated[Remat, tyro.conf.arg(name="model.remat")] = "block"
    """What the backward pass keeps of each period of layers: everything (``none``), its input alone (``block``), that
    and the results of products with weights (``save_dots``), or its input in host memory (``offload``, on TPU)."""
    delta_rule: Annotated[DeltaRule, tyro.conf.arg(name="model.delta-rule")] = "auto"
    """Which form of the gated delta rule is computed. ``auto``: the kernel on a TPU where it fits, else ``chunked``."""
    loss_chunk: int = 256
    """Positions of each sequence whose logits exist at once. It decides memory only."""

    def __post_init__(self):
        if self.loss_chunk < 1:
            raise ValueError(f"loss_chunk={self.loss_chunk} must be at least 1.")
