"""The one thread that owns the engine, and how the tasks of the server talk to it.

An engine is not thread-safe, and a call of the device must not hold up the event loop. So a thread of its own makes
every call: it takes commands from a queue, calls ``step`` while there is work, and hands the news to the loop.
"""

import asyncio
import dataclasses
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.prompts import media_of
from qwen35_jax.inference.requests import Event, Grammar
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.serving.errors import RequestError, refusal_of

T = TypeVar("T")

_LONGEST_RETRY_SECONDS = 60
# Bytes of images and videos in the memory of the host, of all requests that wait or are being written.
_MAX_MEDIA_BYTES = 4 << 30
_STOPPED = "the engine has stopped, and this server is about to end."


@dataclasses.dataclass(frozen=True)
class Submission:
    """One prompt and how to complete it."""

    prompt: Sequence[int]
    sampling: SamplingParams
    max_new_tokens: int
    seed: int
    grammar: Grammar | None = None


class Job:
    """The completions of one HTTP request. Iterate over it for their events, and close it.

    An event comes with the number of its completion, in the order of the submissions.
    """

    def __init__(self, submissions: Sequence[Submission], close: Callable[["Job"], None]):
        self.submissions = submissions
        self.num_open = len(submissions)
        media = {id(one.prompt): media_of(one.prompt) for one in submissions}.values()
        self.media_bytes = sum(one.pixels.nbytes for one in media if one is not None)
        self.started = time.monotonic()
        # The engine's names of the completions; its thread alone uses them.
        self.ids: list[int] = []
        self._news: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()
        self._close = close

    def put(self, number: int, event: Event) -> None:
        """Hands over an event."""
        self.num_open -= event.completion is not None
        self._news.put_nowait((number, event))

    def fail(self) -> None:
        """Says that no event will follow."""
        self._news.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """Gives the events until every completion is finished.

        Raises:
          RequestError: the engine has stopped.
        """
        left = len(self.submissions)
        while left:
            news = await self._news.get()
            if news is None:
                raise RequestError(_STOPPED, status=500)
            left -= news[1].completion is not None
            yield news

    def close(self) -> None:
        """Takes back what is not finished; its slots are free within one call of the device."""
        self._close(self)


class EngineWorker:
    """Runs an engine in a thread of its own.

    All methods belong to the event loop, except those that say otherwise.

    Args:
      max_waiting: how many completions may wait for a slot before requests are turned away.
    """

    def __init__(self, engine: Engine, *, max_waiting: int):
        self.engine = engine
        self.draining = False
        self._max_open = engine.slots + max_waiting
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: set[Job] = set()
        self._idle = asyncio.Event()
        self._mean_seconds = 1.0
        # Which completion is whose; the engine's thread alone uses it.
        self._places: dict[int, tuple[Job, int]] = {}

    def start(self) -> None:
        """Starts the thread; the future ``ended`` is done when it ends, with the error that ended it, if any."""
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self.ended = self._loop.run_in_executor(self._executor, self._run)
        self.ended.add_done_callback(self._fail_all)

    async def stop(self) -> None:
        """Ends the thread after the current call of the device."""
        self._commands.put(None)
        await asyncio.wait([self.ended])
        self._executor.shutdown()

    async def drain(self, grace_seconds: float) -> None:
        """Turns new requests away, lets the open ones finish, and after a time ends those that have not."""
        self.draining = True
        if self._jobs:
            self._idle.clear()
            waiting = asyncio.ensure_future(self._idle.wait())
            await asyncio.wait([waiting, self.ended], timeout=grace_seconds, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        if not self.ended.done():
            await self.call(self._abort_all)

    @property
    def num_open(self) -> int:
        """How many completions wait or are being written."""
        return sum(job.num_open for job in self._jobs)

    async def submit(self, submissions: Sequence[Submission]) -> Job:
        """Hands completions to the engine, all or none of them.

        Raises:
          RequestError: 400 if the engine refuses them, 429 if too many wait already, 503 if the server is ending.
        """
        job = Job(submissions, self._close)
        self._check_capacity(len(submissions), job.media_bytes)
        self._jobs.add(job)
        accepted = False
        try:
            await self.call(lambda: self._begin(job))
            accepted = True
        except ValueError as err:
            raise refusal_of(err) from err
        finally:
            if not accepted:
                job.close()
        return job

    async def call(self, function: Callable[[], T]) -> T:
        """Runs a function in the engine's thread between two calls of the device, and returns what it returns.

        Raises:
          ValueError: as the function does.
          RequestError: the engine has stopped.
        """
        result: asyncio.Future[T] = self._loop.create_future()
        self._commands.put(lambda: self._answer(result, function))
        await asyncio.wait([result, self.ended], return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise RequestError(_STOPPED, status=500)
        return result.result()

    def check_size(self, count: int) -> None:
        """Raises ``RequestError`` for more completions than can ever be taken at once; any thread may call it."""
        if count > self._max_open:
            raise RequestError(f"the request asks for {count} completions; this server takes at most {self._max_open}.")

    def _check_capacity(self, count: int, media_bytes: int) -> None:
        self.check_size(count)
        if self.draining:
            raise RequestError("this server is ending; ask another one.", status=503, retry_after=1)
        held = sum(job.media_bytes for job in self._jobs)
        full = ""
        if self.num_open + count > self._max_open:
            full = f"{self.num_open} completions are being written or wait, and this server takes {self._max_open}"
        elif held and held + media_bytes > _MAX_MEDIA_BYTES:
            full = f"images and videos of {held >> 20} MiB wait, and this server takes {_MAX_MEDIA_BYTES >> 20} MiB"
        if full:
            expected = self._mean_seconds * (self._max_open / self.engine.slots - 1)
            raise RequestError(
                f"{full}; ask again later.",
                status=429,
                retry_after=min(max(round(expected), 1), _LONGEST_RETRY_SECONDS),
            )

    def _close(self, job: Job) -> None:
        if job in self._jobs:
            self._forget(job)
            self._commands.put(lambda: self._abort(job))

    def _forget(self, job: Job) -> None:
        self._jobs.discard(job)
        if not self._jobs:
            self._idle.set()

    def _deliver(self, news: Iterable[tuple[Job, int, Event]]) -> None:
        for job, number, event in news:
            job.put(number, event)
            if not job.num_open and job in self._jobs:
                self._mean_seconds += 0.1 * (time.monotonic() - job.started - self._mean_seconds)
                self._forget(job)

    def _fail_all(self, _: asyncio.Future) -> None:
        for job in list(self._jobs):
            job.fail()
            self._forget(job)

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        while self._take_commands():
            if self.engine.has_work:
                self._tell(self.engine.step())

    def _take_commands(self) -> bool:
        """Runs the commands that wait, or waits for one if there is no work; returns whether to go on."""
        wait = not self.engine.has_work
        try:
            while (command := self._commands.get(block=wait)) is not None:
                command()
                wait = False
        except queue.Empty:
            return True
        return False

    def _answer(self, result: asyncio.Future[T], function: Callable[[], T]) -> None:
        try:
            value = function()
        except ValueError as err:
            self._loop.call_soon_threadsafe(_settle, result, None, err)
        else:
            self._loop.call_soon_threadsafe(_settle, result, value, None)

    def _tell(self, events: Iterable[Event]) -> None:
        news = [(*self._places[event.id], event) for event in events]
        for _, _, event in news:
            if event.completion is not None:
                del self._places[event.id]
        if news:
            self._loop.call_soon_threadsafe(self._deliver, news)

    def _begin(self, job: Job) -> None:
        try:
            for number, one in enumerate(job.submissions):
                name = self.engine.submit(
                    one.prompt, sampling=one.sampling, max_new_tokens=one.max_new_tokens, seed=one.seed,
                    grammar=one.grammar, stream=True,
                )  # fmt: skip
                job.ids.append(name)
                self._places[name] = job, number
        except ValueError:
            self._abort(job)
            raise

    def _abort(self, job: Job) -> None:
        for name in job.ids:
            if self._places.pop(name, None):
                self.engine.abort(name)

    def _abort_all(self) -> None:
        self._tell(filter(None, map(self.engine.abort, list(self._places))))


def _settle(result: asyncio.Future, value: object, err: ValueError | None) -> None:
    if result.done():
        return
    if err is None:
        result.set_result(value)
    else:
        result.set_exception(err)
