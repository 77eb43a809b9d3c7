"""The transformers reference with random weights, and our parameters under the reference's names.

Random initialisation hides mistakes: norms that start at zero, forget gates that close at once. Here every tensor is
drawn so that each of them matters.
"""

import dataclasses

import numpy as np
import pytest

from qwen35_jax.config import ModelConfig
from qwen35_jax.presets import PRESETS

# Natural decay rate of a head that forgets slowly: exp(-0.05 softplus(.)) a token, so that leaks stay visible.
SLOW_DECAY = 0.05
# Width of random linear weights, times in_features ** -0.5. At 1 the norms inside a random network enlarge float32
# rounding until transformers is 2e-4 away from itself in float64; at 0.3 both sides are within 2e-5 of each other.
GAIN = 0.3


def tiny_config(**text_changes) -> ModelConfig:
    """The tiny preset with other text sizes; ``tied`` sets the output head."""
    tied = text_changes.pop("tied", True)
    if "num_hidden_layers" in text_changes:
        text_changes.setdefault("layer_types", ())
    text = dataclasses.replace(PRESETS["tiny"].text, **text_changes)
    return dataclasses.replace(PRESETS["tiny"], text=text, tie_word_embeddings=tied)


def reference_model(config: ModelConfig, seed: int = 0):
    """Builds ``Qwen3_5ForConditionalGeneration`` in float32 with weights that exercise every term."""
    torch = pytest.importorskip("torch", reason="the reference runs on torch")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    hf_config = transformers.Qwen3_5Config(
        **{k: v for k, v in config.to_hf().items() if k not in ("architectures", "model_type")}
    )
    torch.manual_seed(seed)
    model = transformers.Qwen3_5ForConditionalGeneration(hf_config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("A_log"):
                weight.uniform_(0.05, 4.0).log_()
                weight[0] = float(np.log(SLOW_DECAY))
            elif name.endswith("linear_attn.norm.weight"):
                weight.uniform_(0.5, 1.5)
            elif weight.ndim == 1:
                weight.normal_(0, 0.2)
            elif name.endswith("conv1d.weight"):
                weight.normal_(0, 0.4)
            elif "embed_tokens" in name or "lm_head" in name:
                weight.normal_(0, 0.1)
            else:
                weight.normal_(0, GAIN * weight.shape[-1] ** -0.5)
    return model


def by_reference_name(flat: dict, period: int) -> dict[str, np.ndarray]:
    """Turns our flat parameters (or their gradients) into arrays named and laid out as in the reference."""
    named = {}
    for path, value in flat.items():
        value = np.asarray(value)
        if path[0] == "vision":
            named |= _vision_names(path[1:], value)
            continue
        if path[0] != "layers":
            name = ".".join(map(str, path))
            name = name if path[0] in ("lm_head", "mtp") else f"model.language_model.{name}"
            named[name] = _reference_layout(name, value)
            continue
        for row, layer_value in enumerate(value):
            layer = row * period + path[1]
            name = f"model.language_model.layers.{layer}." + ".".join(map(str, path[2:]))
            named[name] = _reference_layout(name, layer_value)
    return named


def _vision_names(path: tuple, value: np.ndarray) -> dict[str, np.ndarray]:
    names = [".".join(map(str, path))]
    if path[0] == "blocks":
        names = [".".join(map(str, ("blocks", i, *path[1:]))) for i in range(len(value))]
    layers = value if path[0] == "blocks" else [value]
    # The weight of the convolution has its outputs last here, like every weight but that of the positions.
    return {
        f"model.visual.{name}": layer if "pos_embed" in name else np.moveaxis(layer, -1, 0)
        for name, layer in zip(names, layers, strict=True)
    }


def _reference_layout(name: str, value: np.ndarray) -> np.ndarray:
    if name.endswith("conv1d.weight"):
        return value[:, None, :]
    if value.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name:
        return value.T
    return value


def reference_mtp(config: ModelConfig, seed: int = 1):
    """Builds transformers' generic MTP layer around a Qwen3.5 attention layer, with random weights."""
    import torch
    from transformers import Qwen3_5TextConfig
    from transformers.modeling_layers import MtpLayer
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm

    content = config.to_hf()["text_config"] | {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    hf_config = Qwen3_5TextConfig(**{k: v for k, v in content.items() if k != "model_type"})
    hf_config._attn_implementation = "eager"
    torch.manual_seed(seed)
    layer = MtpLayer(hf_config, Qwen3_5DecoderLayer, Qwen3_5RMSNorm, 0).float().eval()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(0, 0.2 if weight.ndim == 1 else GAIN * weight.shape[-1] ** -0.5)
    return layer


_MTP_NAMES = {
    "enorm": "pre_fc_norm_embedding",
    "hnorm": "pre_fc_norm_hidden",
    "eh_proj": "fc",
    "mtp_block": "layers.0",
    "post_norm": "norm",
}


def write_checkpoint(model, folder, mtp=None) -> None:
    """Lets transformers write its model, and adds the ``mtp.*`` tensors that it would drop."""
    model.save_pretrained(folder)
    if mtp is None:
        return
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for name, value in mtp.state_dict().items():
        head, rest = name.split(".", 1)
        tensors[f"mtp.{_MTP_NAMES[head]}.{rest}"] = value.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
