"""The one name table: every tensor of a checkpoint, and where it lives in our parameter tree.

A line of the templates below reads ``"mlp.gate_proj.weight": "F D -> D F"``: the name inside its block, the shape in
the checkpoint, and our axes. An axis that we leave out has size 1 (the middle one of the convolution). Without an arrow
the two are the same.

Letters: ``V`` vocabulary, ``D`` model width, ``F`` MLP width, ``Q`` width of queries and gates, ``O`` attention output,
``K`` width of keys or values, ``H`` attention head width, ``C`` convolution channels, ``W`` convolution taps, ``Z``
DeltaNet value width, ``N`` DeltaNet value heads, ``U`` DeltaNet head width. Vision: ``d`` and ``e`` width, ``f`` MLP
width, ``m`` and ``n`` width of a merged patch, ``y`` and ``x`` patch side, ``t`` frames of a patch, ``c`` channels,
``g`` learned positions.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from qwen35_jax.config import FULL, ModelConfig, VisionConfig

_MODEL = {"embed_tokens.weight": "V D -> V D", "norm.weight": "D -> D"}
_LAYER = {
    "input_layernorm.weight": "D -> D",
    "post_attention_layernorm.weight": "D -> D",
    "mlp.gate_proj.weight": "F D -> D F",
    "mlp.up_proj.weight": "F D -> D F",
    "mlp.down_proj.weight": "D F -> F D",
}
_ATTENTION = _LAYER | {
    "self_attn.q_proj.weight": "Q D -> D Q",
    "self_attn.k_proj.weight": "K D -> D K",
    "self_attn.v_proj.weight": "K D -> D K",
    "self_attn.o_proj.weight": "D O -> O D",
    "self_attn.q_norm.weight": "H -> H",
    "self_attn.k_norm.weight": "H -> H",
}
_DELTANET = _LAYER | {
    "linear_attn.in_proj_qkv.weight": "C D -> D C",
    "linear_attn.in_proj_z.weight": "Z D -> D Z",
    "linear_attn.in_proj_a.weight": "N D -> D N",
    "linear_attn.in_proj_b.weight": "N D -> D N",
    "linear_attn.conv1d.weight": "C 1 W -> C W",
    "linear_attn.A_log": "N -> N",
    "linear_attn.dt_bias": "N -> N",
    "linear_attn.norm.weight": "U -> U",
    "linear_attn.out_proj.weight": "D Z -> Z D",
}
_MTP = {
    "fc.weight": "D 2D -> 2D D",
    "pre_fc_norm_embedding.weight": "D -> D",
    "pre_fc_norm_hidden.weight": "D -> D",
    "norm.weight": "D -> D",
}
_VISION = {
    "patch_embed.proj.weight": "d c t y x -> c t y x d",
    "patch_embed.proj.bias": "d",
    "pos_embed.weight": "g d",
}
_MERGER = {
    "linear_fc1.weight": "n m -> m n",
    "linear_fc1.bias": "n",
    "linear_fc2.weight": "D m -> m D",
    "linear_fc2.bias": "D",
}
_LAST_MERGER = {"norm.weight": "d", "norm.bias": "d"} | _MERGER
_INNER_MERGER = {"norm.weight": "m", "norm.bias": "m"} | _MERGER
_VISION_BLOCK = {
    "norm1.weight": "d",
    "norm1.bias": "d",
    "norm2.weight": "d",
    "norm2.bias": "d",
    "attn.qkv.weight": "3d d -> d 3d",
    "attn.qkv.bias": "3d",
    "attn.proj.weight": "e d -> d e",
    "attn.proj.bias": "d",
    "mlp.linear_fc1.weight": "f d -> d f",
    "mlp.linear_fc1.bias": "f",
    "mlp.linear_fc2.weight": "d f -> f d",
    "mlp.linear_fc2.bias": "d",
}
# Float32 in the published checkpoints and in memory; everything else is bfloat16 on disk.
_FLOAT32 = ("linear_attn.A_log", "linear_attn.norm.weight")

TreePath = tuple[str | int, ...]
Index = tuple[slice, ...]
"""A slice for each axis of an array."""
Place = tuple[int | slice, ...]
"""An index into an array: positions along its first axes, then slices of the next. The other axes are whole."""
_Block = tuple[str, TreePath, Place, dict[str, str]]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint.

    A parameter may come from several tensors. Their places in it are then disjoint and cover it (``hf/assembly.py``).

    Attributes:
      name: its name in the checkpoint.
      shape: its shape there.
      dtype: how the published checkpoints store it.
      path: its array in our tree. The path ends in the parameter, or in the name of a component where the parameter
        holds several arrays, as a quantised one does.
      index: its place in that array: ``(g,)`` for period ``g`` of a stack, ``(g, e, slice(0, F))`` for a part of one
        entry of a stack of stacks, ``()`` for the whole array.
      axes: for each axis of ``array[index]`` the axis in the checkpoint; one not listed has size 1.
      is_copy: it repeats a tensor that is read already, so it is only written.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: TreePath
    index: Place = ()
    axes: tuple[int, ...] = ()
    is_copy: bool = False

    @property
    def box(self) -> Index:
        """The place in the array as a slice for each of its axes; a single position is a slice of size 1."""
        own = iter([slice(0, self.shape[axis]) for axis in self.axes])
        box = []
        for entry in self.index:
            if isinstance(entry, int):
                box.append(slice(entry, entry + 1))
                continue
            whole = next(own)
            entry = whole if entry == slice(None) else entry
            assert entry.stop - entry.start == whole.stop, f"{self.name} of shape {self.shape} does not fit {entry}"
            box.append(entry)
        return (*box, *own)

    @property
    def layer_path(self) -> TreePath:
        """The path of the layer that this tensor is a weight of, or a component of a weight."""
        return self.path[: self.path.index("weight")] if "weight" in self.path else self.path[:-1]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Rearranges the checkpoint's layout, or a part of it cut by ``index_in_file``, into ours (a view)."""
        singles = tuple(axis for axis in range(array.ndim) if axis not in self.axes)
        return array.transpose(*self.axes, *singles).reshape([array.shape[axis] for axis in self.axes])

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Rearranges ``array[index]`` in our layout into the checkpoint's; the inverse of ``to_ours``."""
        return array.transpose(np.argsort(self.axes)).reshape(self.shape)

    def index_in_file(self, index: Index) -> Index:
        """Turns slices of our axes into slices of the checkpoint's."""
        found = dict(zip(self.axes, index, strict=True))
        return tuple(found.get(axis, slice(None)) for axis in range(len(self.shape)))


def tensor_table(config: ModelConfig, *, nested: bool | None = None) -> dict[str, TensorSpec]:
    """Lists every tensor of a checkpoint of this configuration by name, the decoder first.

    Args:
      nested: whether the decoder's names begin with ``model.language_model.`` rather than ``model.``. By default the
        architecture decides; but transformers writes a text-only model that it cut from a whole one in either way.

    Raises:
      ValueError: the configuration is of a mixture-of-experts size, whose layers do not exist yet.
    """
    text = config.text
    if text.moe is not None:
        raise ValueError(
            f"{config.architecture}: the mixture-of-experts layers are not implemented yet, only their configuration "
            "is read; use a dense size (0.8b, 2b, 4b, 9b, 27b)."
        )
    sizes = _text_sizes(config)
    decoder = "model.language_model." if (config.has_vision_layout if nested is None else nested) else "model."
    blocks: list[_Block] = [(decoder, (), (), _MODEL)]
    for layer, kind in enumerate(text.layer_types):
        period, i = divmod(layer, text.period)
        template = _ATTENTION if kind == FULL else _DELTANET
        blocks.append((f"{decoder}layers.{layer}.", ("layers", i), (period,), template))
    if not config.tie_word_embeddings:
        blocks.append(("lm_head.", ("lm_head",), (), {"weight": "V D -> V D"}))
    if text.mtp.num_hidden_layers:
        blocks.append(("mtp.", ("mtp",), (), _MTP))
    for layer in range(text.mtp.num_hidden_layers):
        blocks.append((f"mtp.layers.{layer}.", ("mtp", "layers", layer), (), _ATTENTION))
    specs = _specs(blocks, sizes)
    if config.vision is not None:
        specs += _specs(_vision_blocks(config.vision), _vision_sizes(config.vision))
    return {spec.name: spec for spec in specs}


def tied_head(config: ModelConfig) -> TensorSpec:
    """Describes the copy of a tied embedding that some writers leave in the file as ``lm_head.weight``."""
    layout, path = _MODEL["embed_tokens.weight"], ("embed_tokens", "weight")
    return replace(_spec("lm_head.weight", layout, _text_sizes(config), path), is_copy=True)


def module_of(name: str) -> str:
    """Returns a decoder or MTP module's name without what depends on the architecture.

    ``model.language_model.layers.0.mlp.up_proj`` and ``model.layers.0.mlp.up_proj`` are the same module.
    """
    return re.sub(r"^model\.(language_model\.)?", "", name)


def _text_sizes(config: ModelConfig) -> dict[str, int]:
    text = config.text
    assert text.intermediate_size is not None, "only dense sizes have a table"
    return {
        "V": text.vocab_size,
        "D": text.hidden_size,
        "2D": 2 * text.hidden_size,
        "F": text.intermediate_size,
        "Q": 2 * text.num_attention_heads * text.head_dim,
        "O": text.num_attention_heads * text.head_dim,
        "K": text.num_key_value_heads * text.head_dim,
        "H": text.head_dim,
        "C": text.conv_dim,
        "W": text.linear_conv_kernel_dim,
        "Z": text.value_dim,
        "N": text.linear_num_value_heads,
        "U": text.linear_value_head_dim,
        "1": 1,
    }


def _vision_blocks(vision: VisionConfig) -> list[_Block]:
    blocks: list[_Block] = [("", (), (), _VISION)]
    blocks += [(f"blocks.{i}.", ("blocks",), (i,), _VISION_BLOCK) for i in range(vision.depth)]
    blocks.append(("merger.", ("merger",), (), _LAST_MERGER))
    for i in range(len(vision.deepstack_visual_indexes)):
        blocks.append((f"deepstack_merger_list.{i}.", ("deepstack_merger_list", i), (), _INNER_MERGER))
    return [(f"model.visual.{prefix}", ("vision", *path), index, names) for prefix, path, index, names in blocks]


def _vision_sizes(vision: VisionConfig) -> dict[str, int]:
    width, merged = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    return {
        "d": width,
        "e": width,
        "3d": 3 * width,
        "f": vision.intermediate_size,
        "m": merged,
        "n": merged,
        "y": vision.patch_size,
        "x": vision.patch_size,
        "t": vision.temporal_patch_size,
        "c": vision.in_channels,
        "g": vision.num_position_embeddings,
        "D": vision.out_hidden_size,
    }


def _specs(blocks: list[_Block], sizes: dict[str, int]) -> list[TensorSpec]:
    return [
        _spec(prefix + name, layout, sizes, (*path, *name.split(".")), index)
        for prefix, path, index, template in blocks
        for name, layout in template.items()
    ]


def _spec(name: str, layout: str, sizes: dict[str, int], path: TreePath, index: Place = ()) -> TensorSpec:
    stored, _, ours = layout.partition(" -> ")
    letters = stored.split()
    return TensorSpec(
        name=name,
        shape=tuple(sizes[letter] for letter in letters),
        dtype="F32" if name.endswith(_FLOAT32) else "BF16",
        path=path,
        index=index,
        axes=tuple(letters.index(letter) for letter in (ours or stored).split()),
    )
