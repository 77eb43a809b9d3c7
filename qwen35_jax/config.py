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

LINEAR, FULL = "linear_attention", "full_attention"


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
    eos_token_id: int = 248_044
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
        for key, allowed in (("hidden_act", "silu"), ("attention_bias", False), ("attn_output_gate", True)):
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


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower, which reads images and videos as patches."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    deepstack_visual_indexes: tuple[int, ...] = ()
    hidden_act: str = "gelu_pytorch_tanh"
    in_channels: int = 3
    initializer_range: float = 0.02
    num_position_embeddings: int = 2304
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2


ARCHITECTURES = {
    "Qwen3_5ForConditionalGeneration": "qwen3_5",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe",
    "Qwen3_5ForCausalLM": "qwen3_5_text",
    "Qwen3_5MoeForCausalLM": "qwen3_5_moe_text",
}
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
          ValueError: the architecture is not Qwen3.5's, a key is missing, or a value is not supported.
          FileNotFoundError: there is no such file.
        """
        if isinstance(source, Mapping):
            return _from_dict(source)
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; expected a Hugging Face folder with a config.json.")
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
    names = content.get("architectures") or []
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        raise ValueError(f"architectures={names}; supported is one of {', '.join(ARCHITECTURES)}.")
    nested = names[0].endswith("ForConditionalGeneration")
    if nested and not ("text_config" in content and "vision_config" in content):
        raise ValueError(f"{names[0]} needs text_config and vision_config.")
    text = content["text_config"] if nested else content
    vision = _pick(VisionConfig, content["vision_config"], "vision_config") if nested else None
    present = {key: content[key] for key in (*_SPECIAL_TOKENS, "transformers_version") if key in content}
    return ModelConfig(
        text=_text_from_hf(text, moe=names[0].startswith("Qwen3_5Moe")),
        vision=vision,
        # Only the top level is binding: 9B and 27B leave the key out of text_config.
        tie_word_embeddings=bool(content.get("tie_word_embeddings", False)),
        architecture=names[0],
        **present,
    )


def _text_from_hf(content: Mapping[str, Any], *, moe: bool) -> TextConfig:
    rope = content.get("rope_parameters")
    if rope is None:
        raise ValueError("text_config has no rope_parameters.")
    if content.get("mlp_only_layers"):
        raise ValueError(f"mlp_only_layers={content['mlp_only_layers']} is not supported; Qwen3.5 has none.")
    mtp = MTPConfig(content.get("mtp_num_hidden_layers", 0), content.get("mtp_use_dedicated_embeddings", False))
    return _pick(
        TextConfig,
        {"intermediate_size": None, **content},
        "text_config",
        rope=_pick(RopeConfig, rope, "rope_parameters"),
        mtp=mtp,
        moe=_pick(MoEConfig, content, "text_config") if moe else None,
    )


def _pick(cls, content: Mapping[str, Any], where: str, **given):
    """Builds dataclass ``cls`` from the keys of ``content`` that it has fields for."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.name not in given}
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in content]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}.")
    values = {name: content[name] for name in fields if name in content}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}, **given)


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
