"""LoRA adapters in PEFT's format: ``adapter_config.json`` beside ``adapter_model.safetensors``.

PEFT keeps ``lora_A`` as (rank, in) and ``lora_B`` as (out, rank), transposed from ours, one pair for each layer.
Source: ``LoraConfig`` and ``get_peft_model_state_dict`` in peft.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from qwen35_jax import lora
from qwen35_jax.config import ModelConfig
from qwen35_jax.distributed import to_host, wait
from qwen35_jax.hf.assembly import take
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.names import Place, TensorSpec, TreePath, module_of, tensor_table
from qwen35_jax.hf.safetensors import Stored, read_header
from qwen35_jax.layers.embedding import Embedding
from qwen35_jax.lora import Layer
from qwen35_jax.model import Qwen35
from qwen35_jax.storage import new_folder

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LINEAR = ("lora_A.weight", "lora_B.weight")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
# peft writes a copy of an adapted embedding beside its factors.
_BASE_COPY = "base_layer.weight"
# Settings of PEFT that change the mathematics, with the values that leave it as it is here.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "bias": ("none",),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "layer_replication": ([],),
    "target_parameters": ([],),
    "trainable_token_indices": ([], {}),
    "alora_invocation_tokens": ([],),
}


def save_adapter(model: Qwen35, out_dir: str | Path, source: str | Path, *, text_model: bool | None = None) -> Path:
    """Writes the model's adapter into a new folder, for ``peft.PeftModel.from_pretrained`` and ``load_adapter``.

    Modules are listed by their full names, so that peft refuses a base model that names them otherwise. Factors of
    the MTP head are written too. The base model of peft has no such head, so peft passes over them. Under several
    processes all of them call this; the first one writes.

    Args:
      out_dir: a folder that does not exist yet, or is empty.
      source: the base model, as ``base_model_name_or_path`` should name it.
      text_model: name modules as ``Qwen3_5ForCausalLM`` does (what ``AutoModelForCausalLM`` gives), not as
        ``Qwen3_5ForConditionalGeneration``; by default as the checkpoint's own architecture.

    Raises:
      ValueError: the model has no adapter, or ``out_dir`` holds files.
    """
    layers = dict(lora.adapted_layers(model))
    if not layers:
        raise ValueError("the model has no adapter to write; add one (lora.add), or save the model itself.")
    tensors, modules = {}, []
    nested = None if text_model is None else not text_model
    for name, spec, layer in _modules(model.config, layers, nested=nested):
        factors = [take(factor, spec.index) for factor in lora.factors(layer)]
        pair = [np.ascontiguousarray(to_host(factor).astype(np.float32).T) for factor in factors]
        if not any(factor.any() for factor in pair):
            continue  # A layer that the loaded adapter left out: other layers of its stack were adapted.
        modules.append(name)
        for suffix, factor in zip(_suffixes(layer), pair, strict=True):
            tensors[f"{_PREFIX}{name}.{suffix}"] = factor
    config = model.lora_config
    assert config is not None, "a model with adapters remembers their settings"
    content = {
        "base_model_name_or_path": str(source),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(config.alpha) if float(config.alpha).is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": config.rank_stabilized,
    }
    if jax.process_index() == 0:
        with new_folder(out_dir) as folder:
            (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    wait(f"saved {out_dir}")
    return Path(out_dir)


def load_adapter(model: Qwen35, path: str | Path) -> None:
    """Adds an adapter that this library or peft wrote; the model remembers its settings as ``model.lora_config``.

    An adapter may cover any part of the text model's linear layers and its embedding. If it leaves out some layers of a
    stack, these get factors of zero, which stay zero in training too.

    Raises:
      FileNotFoundError: the folder or one of its two files is absent.
      ValueError: the model has an adapter already, or this one is damaged, of another model, or of a kind that is not
        supported (DoRA, biases, saved modules, ranks that differ).
    """
    lora.check_without_adapters(model)
    folder = find_folder(path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; expected a LoRA adapter in PEFT's format.")
    settings = _read_settings(folder / CONFIG_FILE)
    layers = dict(lora.all_layers(model))
    found = _read_pairs(folder / WEIGHTS_FILE, model, layers, settings.rank)

    places = {(path, index) for path, pairs in found.items() for index in pairs}
    config = lora.settings_for(model, places, **asdict(settings))
    for layer_path, pairs in found.items():
        layer = layers[layer_path]
        *stack, in_dim, out_dim = layer.weight.shape
        lora_a = np.zeros((*stack, in_dim, config.rank), np.float32)
        lora_b = np.zeros((*stack, config.rank, out_dim), np.float32)
        for index, (down, up) in pairs.items():
            lora_a[index] = _read(down).T
            lora_b[index] = _read(up).T
        lora.attach(layer, lora_a, lora_b, config)
    model.lora_config = config


@dataclass(frozen=True)
class _Settings:
    rank: int
    alpha: float
    rank_stabilized: bool
    dropout: float


def _read_settings(file: Path) -> _Settings:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        settings = _Settings(
            rank=int(content["r"]),
            alpha=float(content["lora_alpha"]),
            rank_stabilized=bool(content.get("use_rslora")),
            dropout=float(content.get("lora_dropout") or 0),
        )
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"{file} is not the configuration of a LoRA adapter ({type(err).__name__}: {err}).") from err
    if content.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type={content.get('peft_type')!r}; only 'LORA' is supported.")
    for key, neutral in _NEUTRAL.items():
        if content.get(key) not in (None, *neutral):
            raise ValueError(
                f"{file}: {key}={content[key]!r} is not supported; merge this adapter into its base model with peft "
                "and load the result."
            )
    return settings


def _read_pairs(
    file: Path, model: Qwen35, layers: dict[TreePath, Layer], rank: int
) -> dict[TreePath, dict[Place, tuple[Stored, Stored]]]:
    """Finds the two factors of every adapted module, by our layer and the place in its stack; checks their shapes."""
    known = {module_of(name): (name, spec, layer) for name, spec, layer in _modules(model.config, layers)}
    pairs: dict[str, dict[str, Stored]] = {}
    for key, stored in read_header(file).items():
        module, suffix = _split_key(file, key)
        if module_of(module) not in known:
            raise ValueError(
                f"{file}: {key} adapts {module}, which is not a linear layer or the embedding of this text model; "
                "the adapter is another model's."
            )
        pairs.setdefault(module_of(module), {})[suffix] = stored
    if not pairs:
        raise ValueError(f"{file} holds no tensors.")

    found: dict[TreePath, dict[Place, tuple[Stored, Stored]]] = {}
    for module, pair in pairs.items():
        name, spec, layer = known[module]
        in_dim, out_dim = layer.weight.shape[-2:]
        shapes = dict(zip(_suffixes(layer), ((rank, in_dim), (out_dim, rank)), strict=True))
        if _BASE_COPY in pair:
            shapes[_BASE_COPY] = (in_dim, out_dim)
        for suffix, shape in shapes.items():
            if suffix not in pair or pair[suffix].shape != shape:
                present = list(pair[suffix].shape) if suffix in pair else "absent"
                raise ValueError(
                    f"{file}: {suffix} of {name} is {present}; at rank {rank} this model needs {list(shape)}."
                )
        down, up = (pair[suffix] for suffix in _suffixes(layer))
        found.setdefault(spec.layer_path, {})[spec.index] = down, up
    return found


def _split_key(file: Path, key: str) -> tuple[str, str]:
    suffixes = "|".join(map(re.escape, (*_LINEAR, *_EMBEDDING, _BASE_COPY)))
    match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.({suffixes})", key)
    if match is None:
        raise ValueError(f"{file}: {key} is not a LoRA factor of PEFT's, such as {_PREFIX}MODULE.lora_A.weight.")
    return match[1], match[2]


def _modules(
    config: ModelConfig, layers: dict[TreePath, Layer], *, nested: bool | None = None
) -> Iterator[tuple[str, TensorSpec, Layer]]:
    """Yields the checkpoint's name of every module in ``layers``, with its tensor and our layer."""
    for spec in tensor_table(config, nested=nested).values():
        if spec.path is not None and spec.layer_path in layers and spec.name.endswith(".weight"):
            assert all(isinstance(entry, int) for entry in spec.index), f"{spec.name} is only a part of its layer"
            yield spec.name.removesuffix(".weight"), spec, layers[spec.layer_path]


def _suffixes(layer: Layer) -> tuple[str, str]:
    return _EMBEDDING if isinstance(layer, Embedding) else _LINEAR


def _read(stored: Stored) -> np.ndarray:
    return stored.read((slice(None), slice(None)), np.float32)
