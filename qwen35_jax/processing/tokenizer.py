"""The tokenizer of a Hugging Face folder: text to ids, ids to text, conversations to prompts."""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from qwen35_jax.processing.chat_template import ChatTemplate
from qwen35_jax.wording import type_of

END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""What a folder needs for ``Tokenizer.from_pretrained``; the template may sit inside tokenizer_config.json instead."""

# Special tokens that mean something to the model, whatever the template writes.
_MEANINGFUL = re.compile(r"<\|(endoftext|im_start|im_end|(vision|image|video|object_ref|box|quad)_(start|end|pad))\|>")
# What an added token may say.
_FLAGS = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")


class Tokenizer:
    """A byte-level BPE tokenizer with Qwen3.5's special tokens; encoding is thread-safe."""

    def __init__(self, backend: tokenizers.Tokenizer, chat_template: ChatTemplate | None = None, name: str = ""):
        """Wraps a backend that already holds every added token.

        Args:
          name: where it came from, for error messages.

        Raises:
          ValueError: the vocabulary lacks ``<|im_end|>`` or ``<|endoftext|>``.
        """
        self.backend = backend
        self._chat_template = chat_template
        self._name = name or "this tokenizer"
        self.eos_token_ids: tuple[int, ...] = (self.token_id(END_OF_TURN), self.token_id(END_OF_TEXT))
        self.pad_token_id: int = self.token_id(END_OF_TEXT)
        added = backend.get_added_tokens_decoder()
        self.special_tokens: tuple[str, ...] = tuple(added[i].content for i in sorted(added) if added[i].special)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Tokenizer":
        """Reads ``tokenizer.json``, ``tokenizer_config.json`` and the chat template of a local folder.

        ``added_tokens_decoder`` of the configuration is applied over ``tokenizer.json``: the file of the Base
        checkpoints lacks ``<think>`` and others, and would split them into pieces.

        Raises:
          ValueError: a file is missing or malformed, or a token's id is not the one the configuration says.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ValueError(
                f"there is no folder {folder}, and hub ids are not read here; give the folder of a checkpoint, such as "
                'qwen35_jax.hf.hub.find_folder("org/name") downloads.'
            )
        tokenizer_file = folder / "tokenizer.json"
        if not tokenizer_file.is_file():
            if (folder / "checkpoints").is_dir():
                raise ValueError(
                    f"{folder} is the --workdir of a training run and no Hugging Face folder; make one of it by "
                    f"`qwen35 export {folder} --out DIR --merged`."
                )
            raise ValueError(
                f"{folder} holds no tokenizer.json; give the folder of a Hugging Face checkpoint, which has "
                f"{', '.join(TOKENIZER_FILES)}."
            )
        backend = _read_backend(tokenizer_file)
        config = read_json(folder / "tokenizer_config.json")
        _apply_added_tokens(backend, config.get("added_tokens_decoder") or {}, folder)
        return cls(backend, _read_chat_template(folder, config), name=str(folder))

    def __len__(self) -> int:
        """The number of tokens, added ones included; a model's vocabulary may be padded beyond it."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The special tokens that mean something to the model or the chat template: turns, ends, vision.

        Other special tokens, such as those that somebody added for a task, are words like any other.
        """
        template = self._chat_template.source if self._chat_template else ""
        return tuple(token for token in self.special_tokens if _MEANINGFUL.fullmatch(token) or token in template)

    def encode(self, text: str) -> list[int]:
        """Turns text into ids. Special tokens written out in the text become single ids; none is added.

        Raises:
          ValueError: the text holds one half of a UTF-16 surrogate pair, which is no character.
        """
        _check_text(text)
        # Unlike the backend's ``encode``, its batch calls let other Python threads run meanwhile.
        [encoding] = self.backend.encode_batch_fast([text], add_special_tokens=False)
        return encoding.ids

    def encode_with_ranges(
        self, texts: Sequence[str], ranges: Sequence[Sequence[tuple[int, int]]]
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Turns texts into ids, and ranges ``[start, end)`` of the characters of each into ranges of its ids.

        A token belongs to a range if all characters that it was made from do. Tokens that share one character (its
        bytes) share its place. Unicode composition (NFC) happens inside, and characters are those of the text as given.

        Raises:
          ValueError: a text holds one half of a UTF-16 surrogate pair, which is no character.
        """
        for text in texts:
            _check_text(text)
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            (encoding.ids, [_token_range(encoding, *span) for span in spans])
            for encoding, spans in zip(encodings, ranges, strict=True)
        ]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Turns ids into text. Ids of the padded vocabulary give nothing; broken UTF-8 gives U+FFFD.

        ``<think>``, ``<tool_call>`` and their like are not special tokens, and stay.
        """
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int:
        """Returns the id of one token of the vocabulary.

        Raises:
          ValueError: there is no such token.
        """
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise ValueError(f"{self._name} has no token {token!r}; use the tokenizer of a Qwen3.5 checkpoint.")
        return token_id

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ``ValueError`` if a token's id is beyond the vocabulary of a model."""
        largest = max(self.backend.get_vocab(with_added_tokens=True).values())
        if largest >= vocab_size:
            raise ValueError(
                f"the tokenizer of {self._name} has ids up to {largest}, but the model's vocab_size is {vocab_size}; "
                "use the tokenizer that belongs to the checkpoint."
            )

    @property
    def chat_template(self) -> ChatTemplate:
        """The checkpoint's chat template.

        Raises:
          ValueError: the folder had none.
        """
        if self._chat_template is None:
            raise ValueError(
                f"{self._name} has no chat template: neither chat_template.jinja nor `chat_template` in "
                "tokenizer_config.json. Copy the one of the Qwen3.5 checkpoint into the folder."
            )
        return self._chat_template

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
    ) -> list[int]:
        """Turns a conversation into the prompt for the assistant's next turn, generation prompt included.

        Raises:
          ChatTemplateError: the template refuses the conversation.
        """
        text = self.chat_template.render(
            messages, tools=tools, add_generation_prompt=True, enable_thinking=enable_thinking
        )
        return self.encode(text)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as err:
        half, before = f"\\u{ord(text[err.start]):04x}", text[max(err.start - 20, 0) : err.start]
        raise ValueError(
            f"the text holds {half}, one half of a UTF-16 surrogate pair, after {before!r}; mend the text."
        ) from err


def _token_range(encoding: tokenizers.Encoding, start: int, end: int) -> tuple[int, int]:
    """Finds the tokens made only from characters in ``[start, end)``, by bisection: their places never decrease."""

    def characters(token: int) -> tuple[int, int]:
        span = encoding.token_to_chars(token)
        assert span is not None, "no token is added to the text, so each is made from characters"
        return span

    tokens = range(len(encoding))
    first = bisect_left(tokens, start, key=lambda token: characters(token)[0])
    stop = bisect_right(tokens, end, key=lambda token: characters(token)[1])
    return first, max(first, stop)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a checkpoint.

    Raises:
      ValueError: the file is missing, or no such object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ValueError(f"{path} is missing; copy it from the checkpoint the model was made from.") from err
    except ValueError as err:
        raise ValueError(f"{path} is not valid JSON: {err}") from err
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type_of(content)}, not a JSON object.")
    return content


def _read_backend(file: Path) -> tokenizers.Tokenizer:
    content = read_json(file)
    model, added = content.get("model"), content.get("added_tokens") or []
    if not isinstance(model, dict) or not {"vocab", "merges"} <= model.keys():
        raise ValueError(f"{file} describes no BPE model (model.vocab and model.merges).")
    for token in added if isinstance(added, list) else ():
        # The library passes over flags that it does not know.
        _check_flags(file, token, known=(*_FLAGS, "id"))
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as err:  # The library has no class of its own for what a file of a newer version makes it raise.
        raise ValueError(
            f"{file} cannot be read by tokenizers {tokenizers.__version__}: {_first_line(err)}. It may be of a newer "
            "version; update with `pip install --upgrade tokenizers`, or take the checkpoint's original file."
        ) from err


def _apply_added_tokens(backend: tokenizers.Tokenizer, added: Any, folder: Path) -> None:
    """Adds, in the order of their ids, the tokens that the configuration declares."""
    file = folder / "tokenizer_config.json"
    if not isinstance(added, Mapping) or not all(token_id.isdecimal() for token_id in added):
        raise ValueError(f"{file}: added_tokens_decoder is not an object of tokens by their ids.")
    ordered = sorted(added.items(), key=lambda item: int(item[0]))
    for _, flags in ordered:
        _check_flags(file, flags, known=(*_FLAGS, "__type"))
    backend.add_tokens(
        [tokenizers.AddedToken(**{key: flags[key] for key in _FLAGS if key in flags}) for _, flags in ordered]
    )
    for token_id, flags in ordered:
        got = backend.token_to_id(flags["content"])
        if got != int(token_id):
            raise ValueError(
                f"{folder}: tokenizer_config.json gives {flags['content']!r} the id {token_id}, tokenizer.json makes "
                f"it {got}; the two files are not of one tokenizer."
            )


def _check_flags(file: Path, token: Any, *, known: Sequence[str]) -> None:
    """Checks one added token: a flag that is not known may change what text becomes this token."""
    if not isinstance(token, Mapping) or not isinstance(token.get("content"), str):
        raise ValueError(f"{file} has the added token {token!r}, which is not an object with a text as its content.")
    for flag, value in token.items():
        if value and flag not in known:
            raise ValueError(
                f"{file}: the added token {token['content']!r} has {flag}={value!r}, which tokenizers "
                f"{tokenizers.__version__} does not know; take the checkpoint's original file."
            )


def _first_line(err: Exception) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0].rstrip(".")


def _read_chat_template(folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    source, file = config.get("chat_template"), folder / "tokenizer_config.json"
    if isinstance(source, list) and all(isinstance(entry, Mapping) for entry in source):
        # Several named templates: the one for plain chat.
        source = next((entry.get("template") for entry in source if entry.get("name") == "default"), None)
    try:
        if (folder / "chat_template.jinja").is_file():
            file = folder / "chat_template.jinja"
            # No newline translation: the rendering is compared byte for byte.
            source = file.read_bytes().decode("utf-8")
        if not isinstance(source, str | None):
            raise ValueError("The chat template is neither a text nor a list of named ones.")
        return None if source is None else ChatTemplate(source, _special_token_variables(config))
    except ValueError as err:
        raise ValueError(f"{file}: {_first_line(err)}.") from err


def _special_token_variables(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the ``eos_token``, ``pad_token``, ``image_token``, ... that transformers passes to a template."""
    named = {key: value for key, value in config.items() if key.endswith("_token")}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        named.update(extra)
    text = {key: value.get("content") if isinstance(value, Mapping) else value for key, value in named.items()}
    return {key: value for key, value in text.items() if isinstance(value, str)}
