"""What layers remember of the tokens they have seen.

``decoder.py`` is the memory of a whole model, ``contiguous.py`` that of attention layers and ``delta.py`` that of
DeltaNet layers. Each holds the layers at one place of the period, stacked over periods; a layer reads and writes its
own entry by ``Placement.layer``. Another storage of keys and values implements ``KeyValues``.
"""

from qwen35_jax.state.contiguous import ContiguousKeyValues
from qwen35_jax.state.decoder import DecoderState
from qwen35_jax.state.delta import DeltaState
from qwen35_jax.state.protocol import KeyValues, LayerState, Placement

__all__ = ["ContiguousKeyValues", "DecoderState", "DeltaState", "KeyValues", "LayerState", "Placement"]
