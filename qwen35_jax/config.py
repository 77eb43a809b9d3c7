"""The configuration of a Qwen3.5 model: typed, checked, and equal to Hugging Face's ``config.json`` key for key.

Fields keep the names of the file, so that a value seen in one place can be searched for in the other.
``ModelConfig.from_hf`` reads a file or a dictionary, ``to_hf`` writes the same keys and values back.

Source: ``Qwen3_5Config``, ``Qwen3_5TextConfig`` and ``Qwen3_5MoeTextConfig`` in transformers.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen35_jax import config_keys as keys
from qwen35_jax.config_keys import FULL, LINEAR, build, names_of
from qwen35_jax.config_vision import VisionConfig


@dataclass(frozen=True)
class MoEConfig:
    """The sparse MLP of the mixture-of-experts sizes: a routed part and one shared expert."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    router_aux_loss_coef: float = 0.001


@dataclass(frozen=True)
class MTPConfig:
    """The multi-token-prediction head: ``num_hidden_layers`` is 1 in every published size, 0 without a head."""

    num_hidden_layers: int = 1
    use_dedicated_embeddings: bool = False

    def __post_init__(self):
        if self.num_hidden_layers not in (0, 1):
            raise ValueError(f"mtp_num_hidden_layers={self.num_hidden_layers}; Qwen3.5 has 0 or 1 MTP layers.")
        if self.use_dedicated_embeddings:
            raise ValueError("mtp_use_dedicated_embeddings=true is not supported; Qwen3.5 shares the token embedding.")


@dataclass(frozen=True)
class RopeConfig:
    """Interleaved multimodal rotary embedding over the first ``partial_rotary_factor`` of each head."""

    rope_theta: int | float = 10_000_000
    partial_rotary_factor: float = 0.25
    mrope_section: tuple[int, int, int] = (11, 11, 10)
    mrope_interleaved: bool = True
    rope_type: str = "default"

    def __post_init__(self):
        if self.rope_type != "default" or not self.mrope_interleaved:
            raise ValueError(
                f"rope_type={self.rope_type!r}, mrope_interleaved={self.mrope_interleaved}; "
                "only the default type with interleaved sections is supported."
            )


_FIXED = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True}


@dataclass(frozen=True)
class TextConfig:
    """The decoder. ``layer_types`` must repeat ``n`` Gated DeltaNet layers followed by one attention layer."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int | None
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int = 4
    layer_types: tuple[str, ...] = ()
    rope: RopeConfig = RopeConfig()
    mtp: MTPConfig = MTPConfig()
    moe: MoEConfig | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    max_position_embeddings: int = 262_144
    eos_token_id: int | tuple[int, ...] = 248_044
    dtype: str = "bfloat16"
    hidden_act: str = "silu"
    attention_bias: bool = False
    attention_dropout: float = 0.0
    attn_output_gate: bool = True
    mamba_ssm_dtype: str = "float32"
    use_cache: bool = True

    def __post_init__(self):
        if not self.layer_types:
            pattern = (LINEAR, LINEAR, LINEAR, FULL)
            object.__setattr__(self, "layer_types", tuple(pattern[i % 4] for i in range(self.num_hidden_layers)))
        _check_layer_types(self)
        for key, allowed in _FIXED.items():
            if getattr(self, key) != allowed:
                raise ValueError(f"{key}={getattr(self, key)!r} is not supported; Qwen3.5 has {allowed!r}.")
        for many, few in (
            ("num_attention_heads", "num_key_value_heads"),
            ("linear_num_value_heads", "linear_num_key_heads"),
        ):
            if getattr(self, many) % getattr(self, few):
                raise ValueError(
                    f"{many}={getattr(self, many)} is not a multiple of {few}={getattr(self, few)}; "
                    "each key head serves the same number of heads."
                )
        if sum(self.rope.mrope_section) * 2 != self.rotary_dim:
            raise ValueError(
                f"mrope_section={list(self.rope.mrope_section)} sums to {sum(self.rope.mrope_section)}, but "
                f"head_dim={self.head_dim} at partial_rotary_factor={self.rope.partial_rotary_factor} has "
                f"{self.rotary_dim / 2:g} frequencies; make them equal."
            )

    @property
    def period(self) -> int:
        """Number of layers in the repeating pattern (4 in every published size)."""
        return self.layer_types.index(FULL) + 1

    @property
    def num_periods(self) -> int:
        """How often the pattern repeats; the length of every stacked weight's first axis."""
        return self.num_hidden_layers // self.period

    @property
    def rotary_dim(self) -> int:
        """Width of the rotated part of an attention head."""
        return int(self.head_dim * self.rope.partial_rotary_factor)

    @property
    def key_dim(self) -> int:
        """Width of all DeltaNet queries (or keys) of a token."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_dim(self) -> int:
        """Width of all DeltaNet values of a token."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def conv_dim(self) -> int:
        """Number of channels of the DeltaNet convolution: queries, keys and values."""
        return 2 * self.key_dim + self.value_dim


def _check_layer_types(config: TextConfig) -> None:
    if len(config.layer_types) != config.num_hidden_layers:
        raise ValueError(
            f"layer_types has {len(config.layer_types)} entries for num_hidden_layers={config.num_hidden_layers}."
        )
    unknown = sorted(set(config.layer_types) - {LINEAR, FULL})
    if unknown:
        raise ValueError(f"layer_types contains {unknown}; allowed are {LINEAR!r} and {FULL!r}.")
    if FULL not in config.layer_types:
        raise ValueError(f"layer_types has no {FULL!r} layer; Qwen3.5 ends each period with one.")
    pattern = config.layer_types[: config.period]
    if config.num_hidden_layers % config.period or config.layer_types != pattern * config.num_periods:
        raise ValueError(
            f"layer_types does not repeat its first {config.period} entries {list(pattern)} over "
            f"{config.num_hidden_layers} layers; layers are scanned by period, so the pattern must repeat."
        )


ARCHITECTURES = {
    "Qwen3_5ForConditionalGeneration": "qwen3_5",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe",
    "Qwen3_5ForCausalLM": "qwen3_5_text",
    "Qwen3_5MoeForCausalLM": "qwen3_5_moe_text",
}
_TEXT_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "full_attention_interval")
_TEXT_KEYS += ("tie_word_embeddings", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
_SPECIAL_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint: decoder, optional vision tower, and the ids that mark vision in the text."""

    text: TextConfig
    vision: VisionConfig | None = None
    tie_word_embeddings: bool = True
    architecture: str = "Qwen3_5ForConditionalGeneration"
    image_token_id: int = 248_056
    video_token_id: int = 248_057
    vision_start_token_id: int = 248_053
    vision_end_token_id: int = 248_054
    transformers_version: str = "4.57.0.dev0"

    def __post_init__(self):
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture {self.architecture!r} is unknown; supported: {', '.join(ARCHITECTURES)}.")
        if self.is_moe != (self.text.moe is not None):
            raise ValueError(f"{self.architecture} and the presence of num_experts in the configuration disagree.")
        if self.has_vision_layout != (self.vision is not None):
            raise ValueError(f"{self.architecture} and the presence of vision_config disagree.")
        if self.vision is not None:
            self.vision.check_fit(hidden_size=self.text.hidden_size, num_hidden_layers=self.text.num_hidden_layers)

    @property
    def is_moe(self) -> bool:
        return "Moe" in self.architecture

    @property
    def has_vision_layout(self) -> bool:
        """Whether tensors are named ``model.language_model.*`` beside ``model.visual.*``, not ``model.*``."""
        return self.architecture.endswith("ForConditionalGeneration")

    @classmethod
    def from_hf(cls, source: Mapping[str, Any] | str | Path) -> "ModelConfig":
        """Reads a ``config.json`` (its path, its folder, or its content).

        Raises:
          ValueError: the architecture is not Qwen3.5's, a key is missing or unknown, or a value is not supported.
          FileNotFoundError: there is no such file.
        """
        if isinstance(source, Mapping):
            return _from_dict(source)
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            is_adapter = (path.parent / "adapter_config.json").is_file()
            hint = " An adapter lies there; give its base model here, and the adapter apart." if is_adapter else ""
            raise FileNotFoundError(f"{path} does not exist; expected a Hugging Face folder with a config.json.{hint}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as err:
            raise ValueError(f"{path} is not valid JSON: {err}.") from err
        try:
            return _from_dict(content)
        except ValueError as err:
            raise ValueError(f"{path}: {err}") from err

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of ``config.json``, keys in the order of the published files."""
        text = _text_to_hf(self)
        if self.vision is None:
            return {"architectures": [self.architecture], **text, "transformers_version": self.transformers_version}
        vision = _listed(dataclasses.asdict(self.vision)) | {"model_type": ARCHITECTURES[self.architecture]}
        return {
            "architectures": [self.architecture],
            "image_token_id": self.image_token_id,
            "model_type": ARCHITECTURES[self.architecture],
            "text_config": text,
            "tie_word_embeddings": self.tie_word_embeddings,
            "transformers_version": self.transformers_version,
            "video_token_id": self.video_token_id,
            "vision_config": dict(sorted(vision.items())),
            "vision_end_token_id": self.vision_end_token_id,
            "vision_start_token_id": self.vision_start_token_id,
        }


def _from_dict(content: Mapping[str, Any]) -> ModelConfig:
    names = content.get("architectures") if isinstance(content, Mapping) else None
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"architectures={names}; supported is one of {', '.join(ARCHITECTURES)}.")
    if not name.endswith("ForConditionalGeneration"):
        text, vision = content, None
        special = {key: content[key] for key in ("transformers_version",) if key in content}
    else:
        text, vision = content.get("text_config"), content.get("vision_config")
        if not (isinstance(text, Mapping) and isinstance(vision, Mapping)):
            raise ValueError(f"{name} needs text_config and vision_config.")
        read = (*_SPECIAL_TOKENS, "text_config", "vision_config", "tie_word_embeddings")
        keys.check_keys(content, read, "the configuration")
        keys.check_vision_rope(vision)
        keys.check_keys(vision, (*names_of(VisionConfig), "rope_parameters"), "vision_config")
        special = {key: content[key] for key in (*_SPECIAL_TOKENS, "transformers_version") if key in content}
        for key, value in special.items():
            keys.check_type(value, str if key == "transformers_version" else int, key)
    return ModelConfig(
        text=_text_from_hf(text, moe=name.startswith("Qwen3_5Moe")),
        vision=None if vision is None else build(VisionConfig, vision, "vision_config"),
        # Only the top level is binding: 9B and 27B leave the key out of text_config.
        tie_word_embeddings=bool(content.get("tie_word_embeddings", False)),
        architecture=name,
        **special,
    )


def _text_from_hf(content: Mapping[str, Any], *, moe: bool) -> TextConfig:
    keys.check_keys(content, (*names_of(TextConfig), *_TEXT_KEYS, *(names_of(MoEConfig) if moe else ())), "text_config")
    mtp: dict[str, Any] = {"mtp_num_hidden_layers": 0, "mtp_use_dedicated_embeddings": False}
    for key, absent in mtp.items():
        mtp[key] = absent if content.get(key) is None else content[key]
        keys.check_type(mtp[key], type(absent), key)
    if not moe and content.get("intermediate_size") is None:
        raise ValueError("text_config lacks intermediate_size.")
    older = {"layer_types": keys.read_layer_types(content), "dtype": content.get("dtype") or content.get("torch_dtype")}
    return build(
        TextConfig,
        {"intermediate_size": None, **content, **older},
        "text_config",
        rope=build(RopeConfig, keys.read_rope(content), "rope_parameters"),
        mtp=MTPConfig(*mtp.values()),
        moe=build(MoEConfig, content, "text_config") if moe else None,
    )


def _text_to_hf(config: ModelConfig) -> dict[str, Any]:
    text = config.text
    values = _listed(dataclasses.asdict(text))
    rope, mtp, moe = values.pop("rope"), values.pop("mtp"), values.pop("moe")
    ssm_dtype = values.pop("mamba_ssm_dtype")
    if moe is not None:
        values |= moe
        del values["intermediate_size"]
    values |= {f"mtp_{key}": value for key, value in mtp.items()}
    values |= {
        "full_attention_interval": text.period,
        "mlp_only_layers": [],
        "model_type": ARCHITECTURES[config.architecture].removesuffix("_text") + "_text",
    }
    if config.tie_word_embeddings or config.vision is None:
        values["tie_word_embeddings"] = config.tie_word_embeddings
    order = ("mrope_interleaved", "mrope_section", "rope_type", "rope_theta", "partial_rotary_factor")
    return {
        **dict(sorted(values.items())),
        "mamba_ssm_dtype": ssm_dtype,
        "rope_parameters": {key: rope[key] for key in order},
    }


def _listed(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _listed(v) if isinstance(v, dict) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}
