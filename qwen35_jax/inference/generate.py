"""Reads a file of conversations, and writes a row for each answer."""

import dataclasses
import json
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen35_jax.hf.hub import find_file
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.in_turn import generate_in_turn
from qwen35_jax.inference.prompts import Prompt, conversation_prompt
from qwen35_jax.inference.requests import Completion, seed_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing.processor import Processor, check_placeholders, media_of
from qwen35_jax.processing.tokenizer import Tokenizer

MODES: dict[str, bool | None] = {"thinking": True, "non_thinking": False, "default": None}
"""What ``--mode`` passes to the template as ``enable_thinking``; the default is the template's own."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
      id: what the output calls it.
      token_ids: its tokens, none if it has images or videos.
      row: messages and tools of a conversation that has; its media are opened shortly before they are needed.
    """

    id: Any
    token_ids: list[int]
    row: Mapping[str, Any] | None = None


def read_requests(
    path: str | Path, tokenizer: Tokenizer, *, enable_thinking: bool | None, media: bool = False
) -> list[Request]:
    """Reads a JSONL file of conversations and renders each as a prompt for the assistant's next turn.

    Rows are ``{"messages": [...], "tools"?: [...], "id"?: ...}``, or ``{"text": ...}`` for text to be
    continued without a template. A row without an id gets its place in the file, from 0.

    Args:
      path: a file, or an object of a bucket (``gs://``).
      media: whether conversations may have images and videos.

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
                row = _json_of(line)
                request = _request_of_row(row, len(requests), tokenizer, enable_thinking)
                if request.row is not None and not media:
                    raise ValueError("the conversation has images or videos, and only text is read here.")
                str(row.get("id")).encode()  # half of a surrogate pair could not be written
            except ValueError as err:
                raise ValueError(f"{path}, line {line_number}: {err}") from err
            requests.append(request)
    if not requests:
        raise ValueError(f"{path} holds no rows; give one JSON object a line.")
    return requests


def _json_of(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as err:
        raise ValueError(f"not JSON: {err.msg} at character {err.pos + 1}.") from err


def _request_of_row(row: Any, place: int, tokenizer: Tokenizer, enable_thinking: bool | None) -> Request:
    if isinstance(row, Mapping) and {"text", "messages"} <= row.keys():
        raise ValueError('the row has "text" and "messages"; give one of the two.')
    if isinstance(row, Mapping) and isinstance(row.get("text"), str):
        return Request(row.get("id", place), tokenizer.encode(row["text"]))
    messages = row.get("messages") if isinstance(row, Mapping) else None
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError('expected an object with "messages": a list of {"role", "content"} objects (or "text").')
    for number, message in enumerate(messages):
        if message.get("content") is None and message.get("role") != "assistant":
            raise ValueError(f"message {number} has no content; only a turn of the assistant may be without it.")
    for name in ("images", "image", "videos", "video"):
        if row.get(name):
            raise ValueError(
                f'the row has "{name}", and only items of messages are read; write {{"type": "{name.rstrip("s")}", '
                f'"{name.rstrip("s")}": PATH}} into a content.'
            )
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise ValueError('"tools" is no list of objects; give one object for each tool.')
    if messages and messages[-1].get("role") == "assistant":
        raise ValueError("the conversation ends with the assistant's turn; end it with the one to be answered.")
    return request_of(row.get("id", place), messages, tokenizer, tools=tools, enable_thinking=enable_thinking)


def request_of(
    request_id: Any,
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
) -> Request:
    """Returns the request for the next turn of a conversation.

    Raises:
      ValueError: the template refuses it, or an image or a video names no source.
    """
    token_ids = tokenizer.encode_chat(messages, tools=tools, enable_thinking=enable_thinking)
    check_placeholders(token_ids, messages, tokenizer)
    if media_of(messages):
        return Request(request_id, [], {"messages": messages, "tools": tools, "enable_thinking": enable_thinking})
    return Request(request_id, token_ids)


def generate_rows(
    engine: Engine,
    requests: Sequence[Request],
    write: Callable[[int, dict[str, Any]], None],
    *,
    sampling: SamplingParams,
    max_new_tokens: int,
    seed: int = 0,
    samples: int = 1,
    done: Container[int] = (),
    processor: Processor | None = None,
) -> None:
    """Completes requests and hands each output row to ``write`` as it finishes, with its place.

    Sample ``r`` of request ``i`` has the place ``i * samples + r`` and the seed ``seed_of(seed, place)``, so that its
    row does not depend on what else is generated. A row is what ``row_of`` makes; ``eval.score`` reads such rows.

    Args:
      write: called in any order; ``in_order`` makes one that waits for the rows before.
      samples: how many completions each request gets.
      done: places that are left out.
      processor: for requests with images or videos.

    Raises:
      ValueError: ``samples`` is below 1, or as ``Engine.generate`` does; or an image or a video cannot be opened, which
        is found out when its turn comes.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}; give at least 1.")
    places = [place for place in range(len(requests) * samples) if place not in done]

    def finish(number: int, completion: Completion) -> None:
        request, sample = divmod(places[number], samples)
        write(places[number], row_of(requests[request].id, completion, sample if samples > 1 else None))

    seeds = [seed_of(seed, place) for place in places]
    if any(request.row is not None for request in requests):
        count = len(places)
        generate_in_turn(
            engine, [place // samples for place in places],
            lambda number: _prompt_of(engine, requests[places[number] // samples], processor), finish,
            sampling=[sampling] * count, max_new_tokens=[max_new_tokens] * count, seed=seeds,
        )  # fmt: skip
        return
    engine.generate(
        [requests[place // samples].token_ids for place in places],
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        seed=seeds,
        on_finish=finish,
    )


def _prompt_of(engine: Engine, request: Request, processor: Processor | None) -> Prompt:
    if request.row is None:
        return request.token_ids
    assert processor is not None, "whoever reads conversations with images and videos gives a processor"
    try:
        return engine.read([conversation_prompt(processor, **request.row)])[0]
    except ValueError as err:
        raise ValueError(f"request {request.id}: {err}") from err


def row_of(request_id: Any, completion: Completion, sample: int | None = None) -> dict[str, Any]:
    """Returns the output row of a completion.

    It holds ``id``, ``response`` (the answer), ``thinking`` (None without reasoning), ``finish_reason`` and
    ``num_tokens``. Where they say something it also holds ``repeat`` (which of several samples), ``multiple_closes``
    (how many ``</think>`` the answer holds), ``closed_by_budget``, and ``logprobs``: for each token its id, its
    log-probability by the model and by the distribution it was drawn from, and the likeliest tokens.
    """
    row: dict[str, Any] = {"id": request_id}
    if sample is not None:
        row["repeat"] = sample
    row |= {
        "response": completion.answer,
        "thinking": completion.thinking,
        "finish_reason": completion.finish_reason,
        "num_tokens": len(completion.token_ids),
    }
    if completion.multiple_closes:
        row["multiple_closes"] = completion.multiple_closes
    if completion.closed_by_budget:
        row["closed_by_budget"] = True
    if completion.logprobs is not None:
        row["logprobs"] = [
            {"token_id": token_id, **dataclasses.asdict(logprobs)}
            for token_id, logprobs in zip(completion.token_ids, completion.logprobs, strict=True)
        ]
    return row


def in_order(write: Callable[[dict[str, Any]], None]) -> Callable[[int, dict[str, Any]], None]:
    """Returns a ``write`` for ``generate_rows`` that holds each row back until those of all places before are there."""
    waiting: dict[int, dict[str, Any]] = {}
    expected = 0

    def add(place: int, row: dict[str, Any]) -> None:
        nonlocal expected
        waiting[place] = row
        while expected in waiting:
            write(waiting.pop(expected))
            expected += 1

    return add
