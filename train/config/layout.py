"""How a run is laid out over devices and memory: what changes only the order of floating-point sums."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from qwen35_jax.layers.recompute import Remat

DeltaRule = Literal["auto", "chunked", "associative", "kernel"]


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis.

    The sequences of a batch are split over ``data`` and ``fsdp``, their tokens over ``context``. The weights are split
    over ``fsdp`` and ``tensor``.
    """

    data: int = 1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class Layout:
    """What changes only the last digits of a run: a run may resume with another layout, with a warning."""

    mesh: MeshConfig = MeshConfig()
    remat: Annotated[Remat, tyro.conf.arg(name="model.remat")] = "block"
    """What the backward pass keeps of each period of layers: everything (``none``), its input alone (``block``), that
    and the results of products with weights (``save_dots``), or its input in host memory (``offload``, on TPU)."""
    delta_rule: Annotated[DeltaRule, tyro.conf.arg(name="model.delta-rule")] = "auto"
    """Which form of the gated delta rule is computed; ``auto`` takes the one that is fastest on these devices."""
    loss_chunk: int = 256
    """Positions of each sequence whose logits exist at once. It decides memory only."""

    def __post_init__(self):
        if self.loss_chunk < 1:
            raise ValueError(f"loss_chunk={self.loss_chunk} must be at least 1.")
