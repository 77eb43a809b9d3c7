"""From conversations to answers: prompts read and rendered, reasoning told apart from the answer, rows written."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from qwen35_jax.inference.engine import Completion, Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing.tokenizer import Tokenizer

Section = Literal["thinking", "answer"]

MODES: dict[str, bool | None] = {"thinking": True, "non_thinking": False, "default": None}
"""What ``--mode`` passes to the template as ``enable_thinking``; the default is the template's own."""

_OPEN, _CLOSE = "<think>", "</think>"


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt: what the output calls it, and its tokens."""

    id: Any
    token_ids: list[int]


class AnswerStream:
    """Turns generated tokens into text as they come, the reasoning apart from the answer.

    Text is given out only once no later byte can change it: a token may end inside a character, and
    the broken end of the text waits for the rest of it.

    Args:
      tokenizer: its ``<think>`` and ``</think>`` tokens switch the section and are not given out.
      prompt_ids: the prompt, whose last such token says in which section the completion begins.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]):
        self._tokenizer = tokenizer
        self._switch: dict[int, Section] = {
            tokenizer.token_id(_OPEN): "thinking",
            tokenizer.token_id(_CLOSE): "answer",
        }
        last = next((token for token in reversed(prompt_ids) if token in self._switch), None)
        self.section: Section = "answer" if last is None else self._switch[last]
        self._waiting: list[int] = []
        self._given = 0

    def push(self, token: int) -> tuple[Section, str]:
        """Takes the next token; returns the text that is now certain and its section (the text may be empty)."""
        if token in self._switch:
            rest = self.flush()
            self.section = self._switch[token]
            return rest
        self._waiting.append(token)
        text = self._tokenizer.decode(self._waiting, skip_special_tokens=True)
        certain = text.rstrip("\N{REPLACEMENT CHARACTER}")
        new = certain[self._given :]
        self._given = len(certain)
        if certain == text:
            self._waiting, self._given = [], 0
        return self.section, new

    def flush(self) -> tuple[Section, str]:
        """Returns what is left at the end, broken characters included."""
        text = self._tokenizer.decode(self._waiting, skip_special_tokens=True)[self._given :]
        self._waiting, self._given = [], 0
        return self.section, text


def split_thinking(tokenizer: Tokenizer, prompt_ids: Sequence[int], token_ids: Iterable[int]) -> tuple[str | None, str]:
    """Splits a completion into its reasoning (None if it has no such section) and its answer.

    Line breaks next to the think tags belong to the format and are left out. A completion cut off
    while thinking has an empty answer.
    """
    stream = AnswerStream(tokenizer, prompt_ids)
    thought = stream.section == "thinking"
    pieces: dict[Section, list[str]] = {"thinking": [], "answer": []}
    for token in token_ids:
        section, text = stream.push(token)
        pieces[section].append(text)
        thought |= stream.section == "thinking"
    section, text = stream.flush()
    pieces[section].append(text)
    thinking, answer = "".join(pieces["thinking"]), "".join(pieces["answer"])
    return (thinking.strip("\n"), answer.lstrip("\n")) if thought else (None, answer)


def read_requests(path: str | Path, tokenizer: Tokenizer, *, enable_thinking: bool | None) -> list[Request]:
    """Reads a JSONL file of conversations and renders each as a prompt for the assistant's next turn.

    Rows are ``{"messages": [...], "tools"?: [...], "id"?: ...}``, or ``{"text": ...}`` for text to be
    continued without a template. A row without an id gets its place in the file, from 0.

    Raises:
      ValueError: no rows, or a row that is not such an object; the message names file and line.
      OSError: the file cannot be read.
    """
    requests = []
    with open(path, encoding="utf-8") as file:
        for line_number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                token_ids = _prompt_of_row(row, tokenizer, enable_thinking)
            except ValueError as err:
                raise ValueError(f"{path}, line {line_number}: {err}") from err
            requests.append(Request(row.get("id", len(requests)), token_ids))
    if not requests:
        raise ValueError(f"{path} holds no rows; give one JSON object a line.")
    return requests


def _prompt_of_row(row: Any, tokenizer: Tokenizer, enable_thinking: bool | None) -> list[int]:
    if isinstance(row, Mapping) and isinstance(row.get("text"), str):
        return tokenizer.encode(row["text"])
    messages = row.get("messages") if isinstance(row, Mapping) else None
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError('expected an object with "messages": a list of {"role", "content"} objects (or "text").')
    if messages and messages[-1].get("role") == "assistant":
        raise ValueError("the conversation ends with the assistant's turn; end it with the one to be answered.")
    return tokenizer.encode_chat(messages, tools=row.get("tools"), enable_thinking=enable_thinking)


def generate_rows(
    engine: Engine,
    requests: Sequence[Request],
    write: Callable[[dict[str, Any]], None],
    *,
    sampling: SamplingParams,
    max_new_tokens: int,
    seed: int = 0,
) -> None:
    """Completes all requests and hands one output row each to ``write``, in the order of the requests.

    A row holds ``id``, ``response`` (the answer), ``thinking`` (None without reasoning),
    ``finish_reason`` and ``num_tokens``; ``eval.score`` reads such rows. It is written as soon as it
    and all rows before it are finished.

    Raises:
      ValueError: as ``Engine.generate`` does.
    """
    finished: dict[int, dict[str, Any]] = {}
    expected = 0

    def on_finish(number: int, completion: Completion) -> None:
        nonlocal expected
        request = requests[number]
        thinking, answer = split_thinking(engine.tokenizer, request.token_ids, completion.token_ids)
        finished[number] = {
            "id": request.id,
            "response": answer,
            "thinking": thinking,
            "finish_reason": completion.finish_reason,
            "num_tokens": len(completion.token_ids),
        }
        while expected in finished:
            write(finished.pop(expected))
            expected += 1

    prompts = [request.token_ids for request in requests]
    engine.generate(prompts, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed, on_finish=on_finish)
