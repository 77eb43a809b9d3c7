"""LoRA adapters in PEFT's format: ``adapter_config.json`` (adapter_settings.py) and ``adapter_model.safetensors``.

PEFT keeps ``lora_A`` as (rank, in) and ``lora_B`` as (out, rank), transposed from ours, one pair for each layer.
Source: ``LoraConfig`` and ``get_peft_model_state_dict`` in peft.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from safetensors.numpy import save

from qwen35_jax import lora
from qwen35_jax.config import ModelConfig
from qwen35_jax.distributed import to_host, wait
from qwen35_jax.hf.adapter_settings import AdapterSettings, read_settings
from qwen35_jax.hf.assembly import take
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.names import Place, TensorSpec, TreePath, module_of, tensor_table
from qwen35_jax.hf.safetensors import Stored, read_header
from qwen35_jax.layers.embedding import Embedding
from qwen35_jax.lora import Layer, LoraConfig
from qwen35_jax.model import Qwen35
from qwen35_jax.storage import new_folder

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# In a folder of its own: SGLang reads every safetensors file beside the settings.
MTP_WEIGHTS_FILE = f"mtp/{WEIGHTS_FILE}"
AutoClass = Literal["AutoModelForCausalLM", "AutoModelForImageTextToText"]
AUTO_CLASSES: tuple[AutoClass, ...] = get_args(AutoClass)
_PREFIX = "base_model.model."
_LINEAR = ("lora_A.weight", "lora_B.weight")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
# peft writes a copy of an adapted embedding beside its factors.
_BASE_COPY = "base_layer.weight"


def save_adapter(
    model: Qwen35,
    out_dir: str | Path,
    source: str | Path,
    *,
    revision: str | None = None,
    auto_class: AutoClass | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes the model's adapter into a new folder, for ``peft.PeftModel.from_pretrained`` and ``load_adapter``.

    Modules are listed by their full names, so that peft refuses a base model that names them otherwise. Factors of the
    MTP head are in a file of their own, ``mtp/adapter_model.safetensors``, because the base models of other programs
    have no such head, and some refuse an adapter that names it. Under several processes all of them call this; the
    first one writes.

    Args:
      out_dir: a folder that does not exist yet, or is empty.
      source: the base model, as ``base_model_name_or_path`` should name it.
      revision: which revision of it, if it is a repository.
      auto_class: the class of transformers that will load the base model: it decides the names of modules. By default
        the one of the checkpoint's own architecture.
      files: contents by name that are written beside the adapter, such as the tokenizer's.

    Raises:
      ValueError: the model has no adapter, its checkpoint or its adapter is not of ``auto_class``, or ``out_dir`` holds
        files.
    """
    layers = dict(lora.adapted_layers(model))
    nested = _is_nested(model, layers, auto_class)
    tensors: dict[str, dict[str, np.ndarray]] = {WEIGHTS_FILE: {}, MTP_WEIGHTS_FILE: {}}
    modules = []
    for name, spec, layer in _modules(model.config, layers, nested=nested):
        factors = [take(factor, spec.index) for factor in lora.factors(layer)]
        pair = [np.ascontiguousarray(to_host(factor).astype(np.float32).T) for factor in factors]
        if not any(factor.any() for factor in pair):
            continue  # A layer that the loaded adapter left out: other layers of its stack were adapted.
        is_mtp = name.startswith("mtp.")
        modules += [] if is_mtp else [name]
        for suffix, factor in zip(_suffixes(layer), pair, strict=True):
            tensors[MTP_WEIGHTS_FILE if is_mtp else WEIGHTS_FILE][f"{_PREFIX}{name}.{suffix}"] = factor
    assert model.lora_config is not None, "a model with adapters remembers their settings"
    if jax.process_index() == 0:
        with new_folder(out_dir) as folder:
            for file, content in (files or {}).items():
                (folder / file).write_bytes(content)
            settings = _settings(model.lora_config, modules, str(source), revision)
            (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            for file, factors in tensors.items():
                if factors or file == WEIGHTS_FILE:
                    (folder / file).parent.mkdir(exist_ok=True)
                    # Not `save_file`, which hides the file from everybody else whatever the umask says.
                    (folder / file).write_bytes(save(factors, metadata={"format": "pt"}))
    wait("saved")
    return Path(out_dir)


def own_auto_class(model: Qwen35) -> AutoClass:
    """Returns the class of transformers that loads a checkpoint by its own architecture."""
    return AUTO_CLASSES[model.config.has_vision_layout]


def _is_nested(model: Qwen35, layers: Mapping[TreePath, Layer], auto_class: AutoClass | None) -> bool:
    """Whether modules are named as in ``AutoModelForImageTextToText``; checks that the adapter fits the class."""
    if not layers:
        raise ValueError("the model has no adapter to write; add one (lora.add), or save the model itself.")
    if auto_class == AUTO_CLASSES[1] and not model.config.has_vision_layout:
        raise ValueError(f"{model.config.architecture} has no vision; {auto_class} does not load it.")
    nested = (auto_class or own_auto_class(model)) == AUTO_CLASSES[1]
    if not nested and any(path[0] == "vision" for path in layers):
        raise ValueError(
            f"the adapter changes the vision tower, which {AUTO_CLASSES[0]} does not load; export it for "
            f"{AUTO_CLASSES[1]}."
        )
    return nested


def _settings(config: LoraConfig, modules: list[str], base: str, revision: str | None) -> dict[str, Any]:
    """Returns the content of ``adapter_config.json``."""
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(config.alpha) if float(config.alpha).is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "revision": revision,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": config.rank_stabilized,
    }


def load_adapter(model: Qwen35, path: str | Path) -> None:
    """Adds an adapter that this library or peft wrote; the model remembers its settings as ``model.lora_config``.

    An adapter may cover any of the model's linear layers and its embedding. If it leaves out some layers of a
    stack, these get factors of zero, which stay zero in training too. If ranks differ, all get the largest, and the
    rest is filled up with zeros.

    Raises:
      FileNotFoundError: the folder or one of its two files is absent.
      ValueError: the model has an adapter already, or this one is damaged, of another model, or has a setting that is
        not known to be neutral (DoRA, PiSSA, biases, saved modules, ...).
    """
    lora.check_without_adapters(model)
    folder = find_folder(path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; expected a LoRA adapter in PEFT's format.")
    settings = read_settings(folder / CONFIG_FILE)
    layers = dict(lora.all_layers(model))
    found = _read_pairs(folder, model, layers, settings)

    config = lora.settings_for(
        model,
        {(path, index) for path, pairs in found.items() for index in pairs},
        rank=max(pair.rank for pairs in found.values() for pair in pairs.values()),
        alpha=settings.alpha,
        rank_stabilized=settings.rank_stabilized,
        dropout=settings.dropout,
    )
    for layer_path, pairs in found.items():
        layer = layers[layer_path]
        *stack, in_dim, out_dim = layer.weight.shape
        lora_a = np.zeros((*stack, in_dim, config.rank), np.float32)
        lora_b = np.zeros((*stack, config.rank, out_dim), np.float32)
        for index, pair in pairs.items():
            own = slice(pair.rank)
            lora_a[index][..., own] = _read(pair.down).T
            lora_b[index][..., own, :] = _read(pair.up).T * np.float32(pair.scale / config.scale)
        lora.attach(layer, lora_a, lora_b, config)
    model.lora_config = config


class _Pair(NamedTuple):
    """The two factors of a module in the file, (rank, in) and (out, rank)."""

    down: Stored
    up: Stored
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def _read_pairs(
    folder: Path, model: Qwen35, layers: dict[TreePath, Layer], settings: AdapterSettings
) -> dict[TreePath, dict[Place, _Pair]]:
    """Finds the two factors of every adapted module, by our layer and the place in its stack; checks their shapes."""
    known = {module_of(name): (name, spec, layer) for name, spec, layer in _modules(model.config, layers)}
    pairs: dict[str, tuple[str, Path, dict[str, Stored]]] = {}
    for file in (folder / WEIGHTS_FILE, folder / MTP_WEIGHTS_FILE):
        for key, stored in (read_header(file) if file.is_file() else {}).items():
            module, suffix = _split_key(file, key)
            if module_of(module) not in known:
                raise ValueError(
                    f"{file}: {key} adapts {module}, which is not a linear layer or the embedding of this model; "
                    "the adapter is another model's, or the model was loaded without its vision tower."
                )
            if file.parent == folder and not settings.selects(module):
                raise ValueError(
                    f"{file}: {key} adapts {module}, which target_modules and the like in {CONFIG_FILE} leave out; "
                    "remove it from the file, or name it there."
                )
            pairs.setdefault(module_of(module), (module, file, {}))[2][suffix] = stored
    if not pairs:
        raise ValueError(f"{folder / WEIGHTS_FILE} holds no tensors.")

    found: dict[TreePath, dict[Place, _Pair]] = {}
    for key, (module, file, pair) in pairs.items():
        name, spec, layer = known[key]
        in_dim, out_dim = layer.weight.shape[-2:]
        rank = settings.rank_of(module)
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
        found.setdefault(spec.layer_path, {})[spec.index] = _Pair(down, up, settings.scale_of(module))
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
        if spec.layer_path in layers and spec.name.endswith(".weight"):
            assert all(isinstance(entry, int) for entry in spec.index), f"{spec.name} is only a part of its layer"
            yield spec.name.removesuffix(".weight"), spec, layers[spec.layer_path]


def _suffixes(layer: Layer) -> tuple[str, str]:
    return _EMBEDDING if isinstance(layer, Embedding) else _LINEAR


def _read(stored: Stored) -> np.ndarray:
    return stored.read((slice(None), slice(None)), np.float32)
