"""Reads a file of conversations, and writes a row for each answer."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen35_jax.hf.hub import find_file
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.requests import Completion
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing.tokenizer import Tokenizer

MODES: dict[str, bool | None] = {"thinking": True, "non_thinking": False, "default": None}
"""What ``--mode`` passes to the template as ``enable_thinking``; the default is the template's own."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt: what the output calls it, and its tokens."""

    id: Any
    token_ids: list[int]


def read_requests(path: str | Path, tokenizer: Tokenizer, *, enable_thinking: bool | None) -> list[Request]:
    """Reads a JSONL file of conversations and renders each as a prompt for the assistant's next turn.

    Rows are ``{"messages": [...], "tools"?: [...], "id"?: ...}``, or ``{"text": ...}`` for text to be
    continued without a template. A row without an id gets its place in the file, from 0.

    Args:
      path: a file, or an object of a bucket (``gs://``).

    Raises:
      ValueError: no rows, or a row that is not such an object; the message names file and line.
      OSError: the file cannot be read.
    """
    requests = []
    with find_file(path).open(encoding="utf-8") as file:
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

    A row holds ``id``, ``response`` (the answer), ``thinking`` (None without reasoning), ``finish_reason`` and
    ``num_tokens``; and ``multiple_closes`` if the answer holds ``</think>`` marks. ``eval.score`` reads such rows. A
    row is written as soon as it and all rows before it are finished.

    Raises:
      ValueError: as ``Engine.generate`` does.
    """
    finished: dict[int, dict[str, Any]] = {}
    expected = 0

    def on_finish(number: int, completion: Completion) -> None:
        nonlocal expected
        finished[number] = {
            "id": requests[number].id,
            "response": completion.answer,
            "thinking": completion.thinking,
            "finish_reason": completion.finish_reason,
            "num_tokens": len(completion.token_ids),
        }
        if completion.multiple_closes:
            finished[number]["multiple_closes"] = completion.multiple_closes
        while expected in finished:
            write(finished.pop(expected))
            expected += 1

    prompts = [request.token_ids for request in requests]
    engine.generate(prompts, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed, on_finish=on_finish)
