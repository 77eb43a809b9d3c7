"""What layers remember of the tokens they have seen.

``decoder.py`` is the memory of a whole model, ``contiguous.py`` that of attention layers and ``delta.py`` that of
DeltaNet layers; ``paged.py`` is that of the slots of an engine. Each holds the layers at one place of the period,
stacked over periods; a layer reads and writes its own entry by the ``layer`` of a placement. Another storage of keys
and values implements ``KeyValues``.
"""

from qwen35_jax.state.contiguous import ContiguousKeyValues
from qwen35_jax.state.decoder import DecoderState
from qwen35_jax.state.delta import DeltaState
from qwen35_jax.state.paged import PagedKeyValues, PagedPlacement, PagedState, SlotDelta, empty_layers
from qwen35_jax.state.protocol import DeltaMemory, KeyValues, LayerMemory, LayerState, Placement

__all__ = [
    "ContiguousKeyValues",
    "DecoderState",
    "DeltaMemory",
    "DeltaState",
    "KeyValues",
    "LayerMemory",
    "LayerState",
    "PagedKeyValues",
    "PagedPlacement",
    "PagedState",
    "Placement",
    "SlotDelta",
    "empty_layers",
]
