"""The keys of other people's ``config.json``: older spellings, what is harmless, and what is refused.

A key that is not known may change what the model computes. So it passes only if its value says that it is not used:
null, false, or empty. Source: ``PreTrainedConfig`` and ``RotaryEmbeddingConfigMixin`` in transformers.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")

FULL, LINEAR = "full_attention", "linear_attention"
# What transformers and others write into any configuration, and what no layer reads: names, versions, outputs,
# classes, tokens, the form of attention, and defaults of generation.
_HARMLESS = frozenset({
    "_name_or_path", "name_or_path", "architectures", "auto_map", "model_type", "transformers_version",
    "_commit_hash",
    "unsloth_fixed", "unsloth_version", "dtype", "torch_dtype", "torchscript", "use_cache",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "return_dict", "return_dict_in_generate", "output_scores", "output_attentions", "output_hidden_states",
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
    "tokenizer_class", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "prefix",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "chunk_size_feed_forward",
})  # fmt: skip
_ROPE = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved", "rope_type", "type")
_VISION_ROPE = {"rope_type": "axial", "rope_theta": 10000.0}


def check_keys(content: Mapping[str, Any], read: Collection[str], where: str) -> None:
    """Raises ``ValueError`` if a key is neither read nor harmless."""
    for key, value in content.items():
        unused = value is None or value is False or value in ("", [], {})
        if not (unused or key in read or key in _HARMLESS):
            raise ValueError(
                f"{where} has {key}={_shown(value)}, which is not supported: it may change what the model computes. "
                f"{'Use the checkpoint that was not quantised' if 'quant' in key else 'Use a checkpoint without it'}."
            )
    if not str(content.get("model_type") or "qwen3_5").startswith("qwen3_5"):
        raise ValueError(f"{where} has model_type={_shown(content['model_type'])}; expected one of Qwen3.5's.")


def check_vision_rope(content: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` if the rotary embedding of the vision tower is not the one that it was trained with."""
    rope = content.get("rope_parameters") or _VISION_ROPE
    if rope != _VISION_ROPE:
        raise ValueError(f"vision_config has rope_parameters={_shown(rope)}; only {_VISION_ROPE} is supported.")


def read_rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of the rotary embedding that transformers would use.

    ``rope_scaling``, the older name, goes before ``rope_parameters``, and the text configuration may hold
    ``rope_theta`` and ``partial_rotary_factor`` besides.

    Raises:
      ValueError: there are none, or they are not of the default type.
    """
    name = "rope_scaling" if text.get("rope_scaling") else "rope_parameters"
    rope = text.get(name) or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"text_config has {name}={_shown(rope)}; expected an object.")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(
            f"text_config has {name}={_shown(rope)}: rope_type={kind!r} is not supported, only 'default' is. "
            "Use the checkpoint without it: contexts are not extended beyond its own length here."
        )
    check_keys(rope, _ROPE, name)
    outside = {key: text[key] for key in ("rope_theta", "partial_rotary_factor") if text.get(key) is not None}
    rope = outside | {key: value for key, value in rope.items() if key != "type"}
    if rope.get("rope_theta") is None:
        raise ValueError("text_config has no rope_parameters with a rope_theta.")
    return rope


def read_layer_types(text: Mapping[str, Any]) -> Any:
    """Returns the kinds of layers; older files give only how often an attention layer comes."""
    if text.get("layer_types") is not None or text.get("full_attention_interval") is None:
        return text.get("layer_types")
    check_type(text["full_attention_interval"], int, "full_attention_interval")
    check_type(text.get("num_hidden_layers"), int, "num_hidden_layers")
    layers = range(1, text["num_hidden_layers"] + 1)
    return [FULL if layer % text["full_attention_interval"] == 0 else LINEAR for layer in layers]


def names_of(cls: type) -> list[str]:
    """Returns the names of a dataclass's fields."""
    return [field.name for field in dataclasses.fields(cls)]


def build(cls: type[Config], content: Mapping[str, Any], where: str, **given: Any) -> Config:
    """Builds a dataclass from the keys that it has fields for; null means that a key is absent, or that it is None.

    Raises:
      ValueError: a key is missing, or its value is of another type.
    """
    hints = {name: hint for name, hint in get_type_hints(cls).items() if name not in given}
    optional = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}  # pyrefly: ignore[bad-argument-type]
    values = {name: content[name] for name in hints if content.get(name) is not None}
    values |= {name: None for name in hints if name in content and name not in values and name not in optional}
    missing = [name for name in hints if name not in values and name not in optional]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}.")
    for name, value in values.items():
        check_type(value, hints[name], name)
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}, **given)


def check_type(value: Any, hint: Any, name: str) -> None:
    """Raises ``ValueError`` if a value of a JSON file is not of the type of its field, or a size is not positive."""
    if not _fits(value, hint):
        raise ValueError(f"{name}={_shown(value)} is not of the right type; expected {_type_name(hint)}.")
    if type(value) is int and value < 1 and not name.endswith(("_token_id", "mtp_num_hidden_layers")):
        raise ValueError(f"{name}={value} must be at least 1.")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = [each for each in get_args(hint) if each is not ...]
        same_length = ... in get_args(hint) or (isinstance(value, list) and len(value) == len(kinds))
        return isinstance(value, list) and same_length and all(_fits(item, kinds[0]) for item in value)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_type_name(each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a list of {_type_name(get_args(hint)[0])}"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[hint]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
