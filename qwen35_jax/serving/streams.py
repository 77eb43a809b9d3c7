"""Answers that are sent while they are written: server-sent events."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Receive, Scope, Send

from qwen35_jax.serving.errors import RequestError
from qwen35_jax.serving.worker import Job

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies would collect the events.
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """A response of events, each an object of JSON, with ``[DONE]`` at the end.

    The job is closed when the response ends, in whatever way. An error that comes after the first event is an event.
    """

    def __init__(self, job: Job, events: AsyncIterator[dict[str, Any]]):
        self._job = job
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.closing(self._job):
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            try:
                async for event in self._events:
                    await send(_body(json.dumps(event, ensure_ascii=False)))
                await send(_body("[DONE]"))
            except RequestError as err:
                await send(_body(json.dumps(err.body)))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _body(text: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True}
