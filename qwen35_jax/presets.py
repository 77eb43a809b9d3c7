"""What is published of the models: the eight sizes, and how their cards sample. A tiny size for tests besides."""

from typing import Literal, NamedTuple

from qwen35_jax.config import ModelConfig, MoEConfig, RopeConfig, TextConfig, VisionConfig


def _published(
    *,
    layers: int,
    hidden: int,
    ffn: int | None,
    heads: tuple[int, int],
    value_heads: int,
    vision: tuple[int, int, int, int],
    tied: bool = False,
    moe: MoEConfig | None = None,
) -> ModelConfig:
    """Builds a published size; ``heads`` is (query, key-value), ``vision`` is (depth, hidden, heads, ffn)."""
    depth, vision_hidden, vision_heads, vision_ffn = vision
    text = TextConfig(
        vocab_size=248_320, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=256,
        linear_num_key_heads=16, linear_num_value_heads=value_heads,
        linear_key_head_dim=128, linear_value_head_dim=128, moe=moe,
    )  # fmt: skip
    tower = VisionConfig(
        depth=depth, hidden_size=vision_hidden, intermediate_size=vision_ffn, num_heads=vision_heads,
        out_hidden_size=hidden,
    )  # fmt: skip
    kind = "Moe" if moe else ""
    return ModelConfig(text, tower, tied, f"Qwen3_5{kind}ForConditionalGeneration")


def _tiny() -> ModelConfig:
    """Two periods with three value heads for each key head; it has every part of the real architecture."""
    text = TextConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=8,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=16, linear_value_head_dim=8,
        rope=RopeConfig(mrope_section=(2, 1, 1)), max_position_embeddings=4096, eos_token_id=479,
    )  # fmt: skip
    tower = VisionConfig(
        depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64, num_position_embeddings=16
    )
    return ModelConfig(
        text, tower, tie_word_embeddings=True,
        image_token_id=491, video_token_id=492, vision_start_token_id=488, vision_end_token_id=489,
    )  # fmt: skip


_SMALL, _LARGE = (24, 1024, 16, 4096), (27, 1152, 16, 4304)

PRESETS: dict[str, ModelConfig] = {
    "tiny": _tiny(),
    "0.8b": _published(
        layers=24, hidden=1024, ffn=3584, heads=(8, 2), value_heads=16, vision=(12, 768, 12, 3072), tied=True
    ),
    "2b": _published(layers=24, hidden=2048, ffn=6144, heads=(8, 2), value_heads=16, vision=_SMALL, tied=True),
    "4b": _published(layers=32, hidden=2560, ffn=9216, heads=(16, 4), value_heads=32, vision=_SMALL, tied=True),
    "9b": _published(layers=32, hidden=4096, ffn=12288, heads=(16, 4), value_heads=32, vision=_LARGE),
    "27b": _published(layers=64, hidden=5120, ffn=17408, heads=(24, 4), value_heads=48, vision=_LARGE),
    "35b-a3b": _published(
        layers=40, hidden=2048, ffn=None, heads=(16, 2), value_heads=32, vision=_LARGE, moe=MoEConfig(256, 8, 512, 512)
    ),
    "122b-a10b": _published(
        layers=48,
        hidden=3072,
        ffn=None,
        heads=(32, 2),
        value_heads=64,
        vision=_LARGE,
        moe=MoEConfig(256, 8, 1024, 1024),
    ),
    "397b-a17b": _published(
        layers=60,
        hidden=4096,
        ffn=None,
        heads=(32, 2),
        value_heads=64,
        vision=_LARGE,
        moe=MoEConfig(512, 10, 1024, 1024),
    ),
}


class CardSampling(NamedTuple):
    """How a model card samples."""

    temperature: float
    top_k: int
    top_p: float
    presence_penalty: float


# What the cards say that their tables were made with, in one line for both modes.
# Source: the model card of Qwen3.5-2B, the note under its language benchmarks.
CARD_EVAL_SAMPLING = CardSampling(temperature=1.0, top_k=20, top_p=0.95, presence_penalty=1.5)

Modality = Literal["text", "image", "video"]
"""What a question shows besides its text."""

# The same of the tables of vision, whose note has a line a mode; videos keep the temperature of texts in thinking mode.
_VISION_NON_THINKING = CardSampling(temperature=0.7, top_k=20, top_p=0.8, presence_penalty=1.5)
_CARD_EVAL_VISION: dict[tuple[str, Modality], CardSampling] = {
    ("thinking", "image"): CARD_EVAL_SAMPLING._replace(temperature=0.6),
    ("thinking", "video"): CARD_EVAL_SAMPLING,
    ("non_thinking", "image"): _VISION_NON_THINKING,
    ("non_thinking", "video"): _VISION_NON_THINKING,
}
# What all cards advise for images and videos.
_VISION_SAMPLING = {
    "thinking": CardSampling(temperature=0.6, top_k=20, top_p=0.95, presence_penalty=0.0),
    "non_thinking": _VISION_NON_THINKING,
}

# The cards of 0.8B and 2B.
CARD_SAMPLING = {
    "thinking": CardSampling(temperature=1.0, top_k=20, top_p=0.95, presence_penalty=1.5),
    "non_thinking": CardSampling(temperature=1.0, top_k=20, top_p=1.0, presence_penalty=2.0),
}
_LARGE_SAMPLING = {
    "thinking": CARD_SAMPLING["thinking"],
    "non_thinking": CardSampling(temperature=0.7, top_k=20, top_p=0.8, presence_penalty=1.5),
}


def card_sampling(config: ModelConfig, mode: str, modality: Modality = "text") -> CardSampling:
    """Returns what the card of the published model of this size, or of the nearest one, advises for general use.

    Args:
      mode: ``"thinking"`` or ``"non_thinking"``.
      modality: what is asked about.
    """
    if modality != "text":
        return _VISION_SAMPLING[mode]
    small = config.text.moe is None and config.text.hidden_size <= PRESETS["2b"].text.hidden_size
    return (CARD_SAMPLING if small else _LARGE_SAMPLING)[mode]


def card_eval_sampling(mode: str, modality: Modality = "text") -> CardSampling:
    """Returns what the cards say that their tables were made with, by mode (as above) and what is asked about."""
    return CARD_EVAL_SAMPLING if modality == "text" else _CARD_EVAL_VISION[mode, modality]
