"""Changes the sizes of a published model, by the names that they have in ``config.json``."""

import dataclasses
from collections.abc import Mapping

from qwen35_jax.config import ModelConfig
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing.tokenizer import END_OF_TEXT, Tokenizer

# The published vocabulary, 248,320, is the next multiple above the tokenizer's 248,077 tokens.
_VOCABULARY_STEP = 256
_VISION = "vision."
_VISION_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def size_types() -> dict[str, type]:
    """Returns whether each size is an integer or a float, by its name; the tower's begin with ``vision.``."""
    published = PRESETS["2b"].to_hf()
    text = published["text_config"] | published["text_config"]["rope_parameters"]
    named = text | {_VISION + name: value for name, value in published["vision_config"].items()}
    # Token ids are those of a tokenizer, and dropout is never trained with.
    left_out = {"eos_token_id", "attention_dropout"}
    return {name: type(value) for name, value in named.items() if type(value) in (int, float) and name not in left_out}


def resize(
    config: ModelConfig,
    sizes: Mapping[str, int | float],
    *,
    tokenizer: Tokenizer | None = None,
    text_only: bool = False,
) -> ModelConfig:
    """Returns a configuration with other sizes, and with the vocabulary and the special tokens of a tokenizer.

    What follows from a size follows it: the layer types from the number of layers and ``full_attention_interval``, the
    sections of the rotary embedding from the width of a head, and the tower's output from the model's width.

    Args:
      sizes: by the names of ``size_types``.
      tokenizer: gives ``vocab_size`` too, unless ``sizes`` does; by default ids and vocabulary stay.
      text_only: leaves the vision tower out.

    Raises:
      ValueError: a size is out of range, the sizes do not fit each other, or the vocabulary is too small.
    """
    content = config.to_hf()
    text = content["text_config"]
    rope, vision = text["rope_parameters"], content["vision_config"]
    for name, value in sizes.items():
        if value < 0 or (value == 0 and name != "mtp_num_hidden_layers"):
            raise ValueError(f"{name}={value} must be positive.")
        part = vision if name.startswith(_VISION) else rope if name in rope else text
        part[name.removeprefix(_VISION)] = value
    layers, interval = text["num_hidden_layers"], text["full_attention_interval"]
    if layers % interval:
        raise ValueError(
            f"num_hidden_layers={layers} is not a multiple of full_attention_interval={interval}: each period of "
            "layers ends with one of attention."
        )
    text["layer_types"] = None
    frequencies = int(text["head_dim"] * rope["partial_rotary_factor"]) // 2
    if not frequencies:
        raise ValueError(f"head_dim={text['head_dim']} leaves no frequency to rotate by; give 8 or more.")
    rope["mrope_section"] = [(frequencies + 2 - axis) // 3 for axis in range(3)]
    if _VISION + "out_hidden_size" not in sizes:
        vision["out_hidden_size"] = text["hidden_size"]
    if tokenizer is not None:
        if "vocab_size" not in sizes:
            text["vocab_size"] = -(-len(tokenizer) // _VOCABULARY_STEP) * _VOCABULARY_STEP
        text["eos_token_id"] = tokenizer.token_id(END_OF_TEXT)
        content |= {} if text_only else {name: tokenizer.token_id(token) for name, token in _VISION_TOKENS.items()}
    resized = ModelConfig.from_hf(content)
    if text_only:
        resized = dataclasses.replace(resized, vision=None, architecture="Qwen3_5ForCausalLM")
    _check_vocabulary(resized, tokenizer)
    return resized


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer | None) -> None:
    end = config.text.eos_token_id
    ids = {END_OF_TEXT: max(end) if isinstance(end, tuple) else end}
    if tokenizer is not None:
        ids = tokenizer.backend.get_vocab(with_added_tokens=True)
    elif config.vision is not None:
        ids |= {token: getattr(config, name) for name, token in _VISION_TOKENS.items()}
    token, largest = max(ids.items(), key=lambda item: item[1])
    if largest >= config.text.vocab_size:
        remedy = "give --tokenizer DIR, or " if tokenizer is None else ""
        raise ValueError(
            f"vocab_size={config.text.vocab_size} has no place for {token!r}, whose id is {largest}; {remedy}raise "
            f"vocab_size to {largest + 1} or more."
        )
