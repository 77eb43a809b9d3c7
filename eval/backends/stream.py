"""Reads what an OpenAI-compatible server writes: the events of an answer, its errors, and how many tokens there are."""

import dataclasses
import email.utils
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2

_MAY_PASS = (408, 409, 425, 429)
# Of English text; used until the server has counted some.
_TOKENS_PER_CHARACTER = 0.25


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a server has written.

    Attributes:
      text: the message's content, or the continuation of a text.
      reasoning: the thinking, if the server tells it apart; else empty.
      finish_reason: the server's word for how it ended.
      finish_detail: a finer word, which ``qwen35 serve`` gives.
      prompt_tokens, completion_tokens: as the server counts them; None if it does not.
    """

    text: str
    reasoning: str
    finish_reason: str | None
    finish_detail: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class RefusedError(Exception):
    """The server does not accept a request, and never will."""

    def __init__(self, status: int, message: str):
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


class UnansweredError(Exception):
    """A request has failed as often as it may be tried."""


class PassingError(Exception):
    """A failure after which the same request may succeed, at the earliest after ``wait`` seconds."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class Count:
    """How many tokens have been written: those that the server counted, and for the others their characters."""

    def __init__(self):
        self.open_characters = 0
        self._tokens, self._characters = 0.0, 0

    @property
    def tokens(self) -> int:
        """All of them."""
        return int(self._tokens + self.open_characters * self._per_character)

    @property
    def _per_character(self) -> float:
        return self._tokens / self._characters if self._characters else _TOKENS_PER_CHARACTER

    def close(self, characters: int, tokens: int | None) -> None:
        """Takes note that an answer of so many characters has ended; the server counted so many tokens."""
        self._tokens += characters * self._per_character if tokens is None else tokens
        self._characters += characters
        self.open_characters -= characters


class Collected:
    """Puts the events of a stream together; the body of an answer that is no stream counts as one event."""

    def __init__(self, count: Count):
        self._count = count
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._characters = 0
        self._end: dict[str, str | None] = {}
        self._usage: Mapping[str, Any] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """Takes an event; raises ``PassingError`` or ``RefusedError`` if it tells of an error."""
        if event.get("error"):
            code = event["error"].get("code") if isinstance(event["error"], dict) else None
            raise failure_of(code if isinstance(code, int) else 500, message_of(json.dumps(event).encode()), {})
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices") or ():
            part = choice.get("delta") or choice.get("message") or choice
            text = part.get("content") or part.get("text") or ""
            reasoning = part.get("reasoning_content") or part.get("reasoning") or ""
            self._text.append(text)
            self._reasoning.append(reasoning)
            self._characters += len(text) + len(reasoning)
            self._count.open_characters += len(text) + len(reasoning)
            if choice.get("finish_reason"):
                self._end = {name: choice.get(name) for name in ("finish_reason", "finish_detail")}

    def forget(self) -> None:
        """Gives up what has been written."""
        self._count.open_characters -= self._characters

    def answer(self) -> Answer:
        """Returns the whole; raises ``PassingError`` if the end is missing."""
        if not self._end:
            self.forget()
            raise PassingError("the answer ended without a finish_reason")
        completion_tokens = self._usage.get("completion_tokens")
        self._count.close(self._characters, completion_tokens)
        return Answer(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            finish_reason=self._end["finish_reason"],
            finish_detail=self._end["finish_detail"],
            prompt_tokens=self._usage.get("prompt_tokens"),
            completion_tokens=completion_tokens,
        )


async def events(response: httpx2.Response) -> AsyncIterator[Mapping[str, Any]]:
    """Yields the events of a stream, or the body of an answer that is none; raises ``PassingError`` for other bytes."""
    if "event-stream" not in response.headers.get("Content-Type", ""):
        yield _event(await response.aread())
        return
    async for line in _lines(response):
        data = line.removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            yield _event(data)


async def _lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Splits a body at line feeds only: JSON may hold the other characters that Unicode takes for ends of lines."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
    yield rest


def _event(data: bytes) -> Mapping[str, Any]:
    try:
        event = json.loads(data)
    except ValueError as err:
        raise PassingError(f"the answer is not JSON: {data[:80]!r}") from err
    if not isinstance(event, dict):
        raise PassingError(f"the answer is no JSON object: {data[:80]!r}")
    return event


def failure_of(status: int, message: str, headers: Mapping[str, str]) -> RefusedError | PassingError:
    """Returns the error that a status stands for, with the wait that the headers ask for."""
    if status in _MAY_PASS or status >= 500:
        return PassingError(f"HTTP {status}: {message}", _retry_after(headers))
    return RefusedError(status, message)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds of the header, which holds them or a date; None if it holds neither."""
    value = headers.get("Retry-After", "")
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None


def message_of(body: bytes) -> str:
    """Returns what a server says in an error's body, on one line."""
    text = body.decode("utf-8", errors="replace")
    try:
        found = json.loads(text)
        found = found.get("error", found) if isinstance(found, dict) else found
        found = found.get("message") or found.get("detail") or found if isinstance(found, dict) else found
        text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    except ValueError:
        pass
    return " ".join(text.split())[:300] or "no reason given"
