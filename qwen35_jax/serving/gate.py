"""What stands before every route: the key, the size of a body, and clients that go away."""

import asyncio
import hmac

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen35_jax.serving.errors import error_body
from qwen35_jax.serving.metrics import HttpCounts

_BODY_SECONDS = 60.0
_OPEN_PATHS = ("/health",)


class Gate:
    """Refuses what no route needs to see, and ends a route when its client goes away.

    A body is read whole before its route runs. From then on the next message of the connection is its end, and the
    route is cancelled at once, whether it streams or not.

    Args:
      paths: the paths that are counted by name.
      api_key: what clients must send as ``Authorization: Bearer KEY``; None lets everybody in.
      max_body: most bytes of a body.
    """

    def __init__(self, app: ASGIApp, *, paths: tuple[str, ...], counts: HttpCounts, api_key: str | None, max_body: int):
        self._app = app
        self._paths = paths
        self._counts = counts
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send, self._paths, self._counts)
        refusal = self._refusal(scope)
        # A body that nobody wants is read too: otherwise the client sees a broken connection and not the reason.
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await _read_body(receive, 0 if refusal else self._max_body)
        except TimeoutError:
            body, refusal = b"", refusal or (408, f"the body did not arrive within {_BODY_SECONDS:.0f} seconds.")
        if body is None:
            return
        if len(body) > self._max_body:
            refusal = refusal or (413, f"the body has more than {self._max_body} bytes, which is the limit here.")
        if refusal:
            status, message = refusal
            await JSONResponse(error_body(message, status), status_code=status)(scope, receive, answer.send)
        else:
            await self._run(scope, receive, answer, body)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if self._key is not None and scope["path"] not in _OPEN_PATHS and not hmac.compare_digest(given, self._key):
            return 401, "the API key is missing or wrong; send it as `Authorization: Bearer KEY`."
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        # A page in somebody's browser can send other types here without asking.
        if scope["method"] == "POST" and kind != b"application/json":
            return 415, f"the body is {kind.decode('latin-1') or 'of no type'}; send `Content-Type: application/json`."
        return None

    async def _run(self, scope: Scope, receive: Receive, answer: "_Answer", body: bytes) -> None:
        gone = asyncio.ensure_future(_end_of(receive))
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await asyncio.shield(gone)

        route = asyncio.ensure_future(self._app(scope, replay, answer.send))
        try:
            await asyncio.wait({route, gone}, return_when=asyncio.FIRST_COMPLETED)
            self._counts.disconnects += not (route.done() or answer.complete)
        finally:
            route.cancel()
            await asyncio.wait({route})
            gone.cancel()
        if not route.cancelled():
            route.result()


class _Answer:
    """Passes a response on, counts it, and knows when it is complete."""

    def __init__(self, scope: Scope, send: Send, paths: tuple[str, ...], counts: HttpCounts):
        self.complete = False
        self._path = scope["path"] if scope["path"] in paths else "other"
        self._send = send
        self._counts = counts

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._counts.responses[self._path, message["status"]] += 1
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)


async def _read_body(receive: Receive, limit: int) -> bytes | None:
    """Reads a body to its end, and keeps one byte more than ``limit`` of it; None if the client goes away."""
    kept = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        kept += message.get("body", b"")[: limit + 1 - len(kept)]
        if not message.get("more_body", False):
            return bytes(kept)


async def _end_of(receive: Receive) -> Message:
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message
