"""The settings of a PEFT adapter, ``adapter_config.json``: what is obeyed, what is neutral, what is refused.

A setting that is not known may change the mathematics. So it passes only if its value says that it is not used: null,
false, or empty. Source: ``LoraConfig``, ``check_target_module_exists`` and ``get_pattern_key`` in peft.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen35_jax.lora import LoraConfig

_OBEYED = {"r", "lora_alpha", "lora_dropout", "use_rslora", "peft_type", "rank_pattern", "alpha_pattern"}
_OBEYED |= {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
# Whatever their values: they name things, or say how the adapter was trained or is to be computed.
_NEUTRAL = {"base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version", "inference_mode"}
_NEUTRAL |= {"megatron_core", "qalora_group_size", "eva_config", "runtime_config"}
_NEUTRAL_VALUES = {
    "bias": ("none",),
    # Initial values that leave the base weights as they are.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
_UNUSED = (None, False, "", [], {})
_MERGE = "merge this adapter into its base model with peft (merge_and_unload) and load the result"


@dataclass(frozen=True)
class AdapterSettings:
    """What ``adapter_config.json`` says about the factors in the file beside it."""

    rank: int
    alpha: float
    rank_stabilized: bool
    dropout: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Ranks of single modules, by pattern."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    targets: str | tuple[str, ...] | None = None
    """Names, or one pattern, of the modules that are adapted; None where the file does not say."""
    excluded: str | tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    layer_lists: tuple[str, ...] = ()

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Returns what the product of a module's factors is multiplied by."""
        rank, alpha = self.rank_of(module), _by_pattern(self.alphas, module, self.alpha)
        return LoraConfig(rank, alpha, self.rank_stabilized).scale

    def selects(self, module: str) -> bool:
        """Returns whether the settings adapt this module; peft passes over factors of any other."""
        if _is_named(self.excluded, module) or self.targets is None:
            return self.targets is None and not _is_named(self.excluded, module)
        if isinstance(self.targets, str) and self.targets.lower() == "all-linear":
            return not module.endswith("embed_tokens")
        if not _is_named(self.targets, module):
            return False
        # Full names and patterns are not narrowed down by layer.
        if not self.layers or isinstance(self.targets, str) or module in self.targets:
            return True
        lists = "|".join(f"(?:{name})" for name in self.layer_lists) or r"[^.]*"
        found = re.match(rf"(?:.*?\.)?(?:{lists})\.(\d+)\.", module)
        return found is not None and int(found[1]) in self.layers


def read_settings(file: Path) -> AdapterSettings:
    """Reads ``adapter_config.json``.

    Raises:
      ValueError: it is no such file, or holds a setting that is not known to be neutral.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("peft_type") != "LORA":
            raise ValueError(f"peft_type={content.get('peft_type')!r}; only 'LORA' is supported")
        settings = AdapterSettings(
            rank=_whole(content["r"]),
            alpha=_number(content["lora_alpha"]),
            rank_stabilized=bool(content.get("use_rslora")),
            dropout=_number(content.get("lora_dropout") or 0),
            ranks={_pattern(key): _whole(rank) for key, rank in (content.get("rank_pattern") or {}).items()},
            alphas={_pattern(key): _number(alpha) for key, alpha in (content.get("alpha_pattern") or {}).items()},
            targets=None if content.get("target_modules") is None else _names(content["target_modules"]),
            excluded=_names(content.get("exclude_modules") or ()),
            layers=tuple(_whole(layer) for layer in _listed(content.get("layers_to_transform"))),
            layer_lists=tuple(_pattern(name) for name in _listed(content.get("layers_pattern"))),
        )
    except (ValueError, KeyError, TypeError, AttributeError, re.error) as err:
        reason = err if isinstance(err, ValueError) else f"{type(err).__name__}: {err}"
        raise ValueError(f"{file} is not the configuration of a LoRA adapter that can be read: {reason}.") from err
    _check_neutral(file, content)
    return settings


def _check_neutral(file: Path, content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if key in _OBEYED | _NEUTRAL or any(value is each for each in _UNUSED[:2]) or value in _UNUSED[2:]:
            continue
        allowed = _NEUTRAL_VALUES.get(key, ())
        if any(type(value) is type(each) and value == each for each in allowed):
            continue
        remedy = _MERGE
        if key == "init_lora_weights":
            remedy = (
                "it may have changed the base weights; write the adapter anew with peft's save_pretrained(..., "
                "path_initial_model_for_weight_conversion=...), which makes it a plain one, or " + _MERGE
            )
        raise ValueError(f"{file}: {key}={value!r} is not supported; {remedy}.")


def _by_pattern(values: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _is_named(names: str | Iterable[str], module: str) -> bool:
    """Returns whether one pattern describes the module, or a name in a list ends its path."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _names(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return _pattern(value)
    if not all(isinstance(name, str) for name in value):
        raise ValueError(f"{value!r} are not names of modules")
    return tuple(value)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _pattern(value: Any) -> str:
    re.compile(value)
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
