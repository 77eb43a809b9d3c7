"""How far a run is: tokens a second, finished responses, and how long it may still take."""

import collections
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import jax

from eval.backends.base import Backend, Request
from eval.remaining import survival, tokens_to_the_end

_TERMINAL_SECONDS, _FILE_SECONDS = 5.0, 60.0
_WINDOW_SECONDS = 120.0


class Progress:
    """Tells on the standard error how responses come along while they are written, also while none finishes.

    A terminal has one line that changes; a file gets a line a minute. Of several processes the first one tells of its
    own share.

    Args:
      backend: writes the responses; those with the highest limit first, else in the order of ``requests``.
      stream: where to tell it; by default the standard error.
      seconds: between two lines; by default as the stream needs it.
    """

    def __init__(
        self, backend: Backend, requests: Sequence[Request], *, stream: TextIO | None = None,
        seconds: float | None = None,
    ):  # fmt: skip
        self._stream = sys.stderr if stream is None else stream
        self._on_terminal = self._stream.isatty()
        self._seconds = seconds or (_TERMINAL_SECONDS if self._on_terminal else _FILE_SECONDS)
        self._responses = Responses(backend, requests, time.monotonic())
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._tell_again_and_again, daemon=True)
        self._is_quiet = jax.process_index() != 0 or not requests

    def __enter__(self) -> "Progress":
        if not self._is_quiet:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._is_quiet:
            self._ended.set()
            self._thread.join()
            self._tell("\n")

    def finish(self, place: int, sample: Mapping[str, Any]) -> None:
        """Takes note of a finished response, whose request has this place."""
        with self._lock:
            self._responses.finish(place, sample, time.monotonic())

    def _tell_again_and_again(self) -> None:
        while not self._ended.wait(self._seconds):
            self._tell("" if self._on_terminal else "\n")

    def _tell(self, end: str) -> None:
        with self._lock:
            self._responses.look(time.monotonic())
            line = self._responses.line()
        if self._on_terminal:
            width = shutil.get_terminal_size().columns - 1
            line = f"\r\x1b[2K{line[:width]}"
        self._stream.write(line + end)
        self._stream.flush()


class Responses:
    """What is known of the responses of a run at one time.

    All that are written at once are taken to grow equally fast: one is as long as a slot has written since it began.

    Args:
      now: seconds, as in the other methods.
    """

    def __init__(self, backend: Backend, requests: Sequence[Request], now: float):
        self._backend = backend
        self._limits = [request.max_new_tokens for request in requests]
        self._order = collections.deque(sorted(range(len(requests)), key=lambda place: -self._limits[place]))
        self._before = self._last_tokens = backend.generated_tokens
        # Tokens that a slot has written since the beginning, and where each running response began.
        self._clock = 0.0
        self._running: dict[int, float] = {}
        self._lengths: list[int] = []
        self._cut: list[bool] = []
        self._num_finished = self._num_correct = 0
        self._seen = collections.deque([(now, 0, 0.0)])
        self._begin()

    def finish(self, place: int, sample: Mapping[str, Any], now: float) -> None:
        """Takes note of a finished response."""
        self.look(now)
        began = self._running.pop(place, None)
        if began is None and place in self._order:
            self._order.remove(place)
        length = sample["num_tokens"]
        if length is None and began is not None and sample["outcome"] != "error":
            length = round(self._clock - began)
        if length is not None:
            self._lengths.append(length)
            self._cut.append(sample["outcome"] == "truncated")
        self._num_finished += 1
        self._num_correct += bool(sample["correct"])
        self._begin()

    def look(self, now: float) -> None:
        """Reads how many tokens there are."""
        tokens = max(self._backend.generated_tokens, self._last_tokens)
        self._clock += (tokens - self._last_tokens) / max(len(self._running), 1)
        self._last_tokens = tokens
        if now > self._seen[-1][0]:
            self._seen.append((now, tokens - self._before, self._clock))
        while len(self._seen) > 2 and now - self._seen[1][0] > _WINDOW_SECONDS:
            self._seen.popleft()

    @property
    def seconds_left(self) -> float | None:
        """How long the rest may take; None if nothing has finished yet."""
        (before, _, slower), (now, _, clock) = self._seen[0], self._seen[-1]
        if not self._lengths or clock == slower:
            return None
        lengths = survival(self._lengths, self._cut, [self._clock - began for began in self._running.values()])
        tokens = tokens_to_the_end(
            lengths,
            [self._clock - began for began in self._running.values()],
            [self._limits[place] for place in self._running],
            [self._limits[place] for place in self._order],
            self._backend.slots,
        )
        return tokens * (now - before) / (clock - slower)

    def line(self) -> str:
        """Returns all this in one line."""
        (before, fewer, _), (now, tokens, _) = self._seen[0], self._seen[-1]
        parts = [f"{self._num_finished:,} of {len(self._limits):,} finished"]
        if now > before:
            parts.append(f"{(tokens - fewer) / (now - before):,.0f} tokens/s")
        is_whole = self._num_finished == len(self._limits)
        if self._num_finished:
            bias = "" if is_whole else " so far (biased: short answers finish first)"
            parts.append(f"{self._num_correct / self._num_finished:.1%} right{bias}")
        seconds = None if is_whole else self.seconds_left
        if seconds is not None:
            parts.append(f"about {_duration(seconds)} left")
        return ", ".join(parts)

    def _begin(self) -> None:
        while self._order and len(self._running) < self._backend.slots:
            self._running[self._order.popleft()] = self._clock


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
