"""Asks an OpenAI-compatible server for texts: many at once, as streams, and again after a failure that may pass."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx2

from eval.backends.stream import (
    Answer,
    Collected,
    Count,
    PassingError,
    RefusedError,
    UnansweredError,
    events,
    failure_of,
    message_of,
)

ATTEMPTS = 6
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 120.0
# A request may wait for long until a server that is full begins with it.
_TIMEOUT = httpx2.Timeout(60.0, connect=10.0, read=1800.0, pool=None)

Failure = RefusedError | UnansweredError


class Client:
    """A server's address, key and connections.

    Args:
      url: up to the version, such as http://localhost:8000/v1.
      key: sent as a bearer token; None sends none.
      connections: most requests at once.
      option: that gave the address, for messages.

    Attributes:
      first_wait: seconds before a request is tried again; they double each time.

    Raises:
      ValueError: the address is none of http or https.
    """

    first_wait = _FIRST_WAIT

    def __init__(self, url: str, key: str | None, connections: int, option: str = "--server.url"):
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as err:
            raise ValueError(f"{option} {url}: {err}; give an address such as http://localhost:8000/v1.") from err
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"{option} {url}: give an address such as http://localhost:8000/v1.")
        if connections < 1:
            raise ValueError(f"{option.partition('.')[0]}.connections {connections}; give at least 1.")
        self.url = url.rstrip("/")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.connections = connections
        self._counted = Count()

    @property
    def generated_tokens(self) -> int:
        """Tokens written so far. Those of answers that are still being written are reckoned from their length."""
        return self._counted.tokens

    def models(self) -> list[dict[str, Any]]:
        """Returns what the server says of its models.

        Raises:
          RefusedError: it does not say it.
          UnansweredError: it does not answer.
        """
        try:
            response = httpx2.get(f"{self.url}/models", headers=self._headers, timeout=30.0)
            if response.status_code != 200:
                raise RefusedError(response.status_code, message_of(response.content))
            return [dict(model) for model in response.json()["data"]]
        except httpx2.RequestError as err:
            raise UnansweredError(_reason(err)) from err
        except (ValueError, KeyError, TypeError) as err:
            raise RefusedError(200, "it answers /models, but not with a list of models") from err

    def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Returns the answer to one request.

        Raises:
          RefusedError, UnansweredError: it failed for good.
        """
        answers: list[Answer | Failure] = []
        self.ask_all([(path, body)], lambda _, answer: answers.append(answer))
        if not isinstance(answers[0], Answer):
            raise answers[0]
        return answers[0]

    def ask_all(
        self, requests: Sequence[tuple[str, Mapping[str, Any]]], on_answer: Callable[[int, Answer | Failure], None]
    ) -> None:
        """Sends requests, paths and bodies; ``on_answer`` is called with the place of each as it ends, in any order."""
        places = iter(enumerate(requests))

        async def work(http: httpx2.AsyncClient) -> None:
            for place, (path, body) in places:
                try:
                    answer = await self._persist(http, path, body)
                except (RefusedError, UnansweredError) as err:
                    answer = err
                on_answer(place, answer)

        async def work_together() -> None:
            count = min(self.connections, len(requests))
            limits = httpx2.Limits(max_connections=count, max_keepalive_connections=count)
            async with httpx2.AsyncClient(headers=self._headers, timeout=_TIMEOUT, limits=limits) as http:
                await asyncio.gather(*(work(http) for _ in range(count)))

        if requests:
            asyncio.run(work_together())

    async def _persist(self, http: httpx2.AsyncClient, path: str, body: Mapping[str, Any]) -> Answer:
        for attempt in range(ATTEMPTS):
            try:
                return await self._once(http, path, body)
            except PassingError as err:
                if attempt == ATTEMPTS - 1:
                    raise UnansweredError(f"{err} ({ATTEMPTS} times)") from err
                # Requests that failed together do not come back together.
                wait = self.first_wait * 2**attempt * random.uniform(0.75, 1.25)
                await asyncio.sleep(min(max(wait, err.wait or 0.0), _LONGEST_WAIT))
        raise AssertionError("unreachable")

    async def _once(self, http: httpx2.AsyncClient, path: str, body: Mapping[str, Any]) -> Answer:
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        found = Collected(self._counted)
        try:
            async with http.stream("POST", self.url + path, json=streamed) as response:
                if response.status_code != 200:
                    raise failure_of(response.status_code, message_of(await response.aread()), response.headers)
                async for event in events(response):
                    found.take(event)
        except httpx2.RequestError as err:
            found.forget()
            raise PassingError(_reason(err)) from err
        except BaseException:
            found.forget()
            raise
        return found.answer()


def _reason(err: httpx2.RequestError) -> str:
    return str(err) or type(err).__name__
