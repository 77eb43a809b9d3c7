"""Builds a small tokenizer for tests and the quickstart. It differs from Qwen3.5's only in its merges.

The normaliser, the pre-tokeniser and the decoder are the same, and so are the added tokens and their order. Their ids
follow those of the base vocabulary, as in the original. ``chat_template.jinja`` beside this file renders conversations
of text byte for byte as the template of Qwen3.5 (2B and smaller) does.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from qwen35_jax.processing.tokenizer import END_OF_TEXT, END_OF_TURN

PRE_TOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Cuts text into pieces. Merges happen only inside a piece, and each digit is a piece of its own."""

_NOT_SPECIAL = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
ADDED_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    *_NOT_SPECIAL,
    "<|audio_start|>",
    "<|audio_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
    "<tts_text_bos_single>",
    "<|audio_pad|>",
)
"""Qwen3.5's 33 added tokens in the order of their ids."""

_NUM_BYTES = 256


def build_tiny_tokenizer(texts: Iterable[str], out_dir: str | Path, *, vocab_size: int = 512) -> Path:
    """Trains a byte-level BPE on ``texts`` and writes it as a Hugging Face folder. Equal input gives equal files.

    Args:
      texts: the merges are learnt from these.
      out_dir: receives tokenizer.json, tokenizer_config.json and chat_template.jinja. It is made if it does not exist.
      vocab_size: the number of bytes, merges and the 33 added tokens together. Small text may yield fewer.

    Returns:
      The folder, ready for ``Tokenizer.from_pretrained``.

    Raises:
      ValueError: ``vocab_size`` is smaller than the number of bytes and added tokens.
    """
    smallest = _NUM_BYTES + len(ADDED_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: a byte-level vocabulary with Qwen3.5's added tokens needs at least "
            f"{smallest}."
        )
    tokenizer = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    flags = [_flags(token) for token in ADDED_TOKENS]
    # A dictionary's values have one type, and the checker can't tell which flag each of them is.
    tokenizer.add_tokens([tokenizers.AddedToken(**flag) for flag in flags])  # pyrefly: ignore[bad-argument-type]

    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    first = tokenizer.token_to_id(ADDED_TOKENS[0])
    assert first is not None, "the token was added above"
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(first + i): flag for i, flag in enumerate(flags)},
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": END_OF_TEXT,
        "pretokenize_regex": PRE_TOKENIZER_PATTERN,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    template = Path(__file__).with_name("chat_template.jinja")
    (folder / "chat_template.jinja").write_bytes(template.read_bytes())
    return folder


def _untrained() -> tokenizers.Tokenizer:
    """Returns Qwen3.5's normaliser, pre-tokeniser and decoder around a BPE without merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PRE_TOKENIZER_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _flags(token: str) -> dict[str, str | bool]:
    never = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": token, **never, "special": token not in _NOT_SPECIAL}
