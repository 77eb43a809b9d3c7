"""The files that tell other programs where a chat model's answer ends and how it is sampled.

Three files name the tokens that end an answer, and programs differ in which they read: transformers reads
``generation_config.json``, or ``config.json`` where that is absent; vLLM joins the tokenizer's ``eos_token`` and
``generation_config.json``; SGLang joins all three. A Base checkpoint names ``<|endoftext|>`` in each of them.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen35_jax.config import ModelConfig
from qwen35_jax.presets import card_sampling
from qwen35_jax.processing.thinking import opens_thinking
from qwen35_jax.processing.tokenizer import END_OF_TEXT, END_OF_TURN, TOKENIZER_FILES, Tokenizer
from qwen35_jax.wording import type_of

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
_TOKENIZER_CONFIG, _SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
# Older libraries write the last four beside tokenizer.json, and read them.
_COMPANIONS = (*TOKENIZER_FILES, GENERATION_CONFIG, _SPECIAL_TOKENS, "added_tokens.json", "vocab.json", "merges.txt")
_SAMPLING = ("temperature", "top_k", "top_p")

Json = dict[str, Any]


def chat_files(folder: Path) -> dict[str, bytes]:
    """Returns the files, by name, in which a chat model made from this checkpoint differs from it.

    An answer ends at ``<|im_end|>`` or ``<|endoftext|>``. How answers are sampled stays as the checkpoint's own
    ``generation_config.json`` says. If it has none, it becomes what the model card advises for the mode in which the
    chat template begins an answer; the card's presence penalty has no place in that file.

    Raises:
      ValueError: the folder has no tokenizer or no chat template, or a file is damaged.
    """
    tokenizer = Tokenizer.from_pretrained(folder)
    ends = tokenizer.eos_token_ids

    def set_generation(content: Json) -> None:
        if not content.keys() & {"do_sample", *_SAMPLING}:
            advice = card_sampling(ModelConfig.from_hf(folder), mode_of(tokenizer))._asdict()
            content |= {"do_sample": True} | {key: advice[key] for key in _SAMPLING}
        others = [token_id for token_id in _ids(content.get("eos_token_id")) if token_id not in ends]
        content |= {"eos_token_id": [*ends, *others], "pad_token_id": tokenizer.pad_token_id}

    def set_tokens(content: Json) -> None:
        content |= {"eos_token": END_OF_TURN, "pad_token": END_OF_TEXT}

    files = {GENERATION_CONFIG: _edited(folder / GENERATION_CONFIG, set_generation)}
    files[_TOKENIZER_CONFIG] = _edited(folder / _TOKENIZER_CONFIG, set_tokens)
    if (folder / _SPECIAL_TOKENS).is_file():
        files[_SPECIAL_TOKENS] = _edited(folder / _SPECIAL_TOKENS, set_tokens)
    return files | {CONFIG: _config_with_end(folder, ends[0])}


def companion_files(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder that say how its model is prompted and sampled: tokenizer, template, generation."""
    return {name: (folder / name).read_bytes() for name in _COMPANIONS if (folder / name).is_file()}


def merged_files(adapter: Path, base: Path) -> dict[str, bytes]:
    """Returns the files that a checkpoint takes over when an adapter is merged into it.

    They are the tokenizer, chat template and ``generation_config.json`` of the adapter's folder, where these differ
    from those of the base, and ``config.json`` with the same end.

    Raises:
      ValueError: the adapter's tokenizer is damaged, or has more tokens than the base model.
    """
    files = companion_files(adapter)
    if "tokenizer.json" in files:
        Tokenizer.from_pretrained(adapter).check_vocabulary(ModelConfig.from_hf(base).text.vocab_size)
    own = companion_files(base)
    changed = {name: content for name, content in files.items() if content != own.get(name)}
    if GENERATION_CONFIG in changed:
        ends = _ids(_parse(adapter / GENERATION_CONFIG, changed[GENERATION_CONFIG]).get("eos_token_id"))
        changed |= {CONFIG: _config_with_end(base, ends[0])} if ends else {}
    return changed


def sampling_note(folder: Path) -> str:
    """Returns how other programs sample from the model in a folder, to follow its name; empty if they do not."""
    file = folder / GENERATION_CONFIG
    content = _parse(file, file.read_bytes()) if file.is_file() else {}
    if not content.get("do_sample"):
        return ""
    chosen = ", ".join(f"{key} {content[key]}" for key in _SAMPLING if key in content)
    return f"; by default transformers and servers sample from it ({chosen}); qwen35 generate takes the likeliest token"


def mode_of(tokenizer: Tokenizer, *, enable_thinking: bool | None = None) -> str:
    """Says whether the chat template, by default left to itself, lets the model think first."""
    prompt = tokenizer.encode_chat([{"role": "user", "content": "?"}], enable_thinking=enable_thinking)
    return "thinking" if opens_thinking(tokenizer, prompt) else "non_thinking"


def _config_with_end(folder: Path, end: int) -> bytes:
    def set_end(content: Json) -> None:
        content["eos_token_id"] = end
        if "text_config" in content:
            content["text_config"]["eos_token_id"] = end

    return _edited(folder / CONFIG, set_end)


def end_tokens(folder: Path) -> list[int]:
    """Returns the token ids that a checkpoint's files name as the end of an answer, as transformers reads them.

    Raises:
      ValueError: a file is damaged.
    """
    for name in (GENERATION_CONFIG, CONFIG):
        path = folder / name
        if path.is_file() and (found := _ids(_parse(path, path.read_bytes()).get("eos_token_id"))):
            return found
    return []


def _ids(value: Any) -> list[int]:
    """Returns token ids, which a file may hold as a number, a list or not at all."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _edited(file: Path, edit: Callable[[Json], None]) -> bytes:
    """Returns the JSON file's bytes after ``edit``, laid out as before; an absent file counts as an empty object."""
    raw = file.read_bytes() if file.is_file() else b'{\n    "": 0\n}\n'
    content = _parse(file, raw) if file.is_file() else {}
    before = json.dumps(content)
    edit(content)
    if json.dumps(content) == before:
        return raw
    indent = re.match(rb"\{\r?\n( +)", raw)
    text = json.dumps(content, indent=len(indent[1]) if indent else None, ensure_ascii=False)
    return text.encode() + (b"\n" if raw.endswith(b"\n") else b"")


def _parse(file: Path, raw: bytes) -> Json:
    try:
        content = json.loads(raw)
    except ValueError as err:
        raise ValueError(f"{file} is not valid JSON: {err}.") from err
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type_of(content)}, not a JSON object.")
    return content
