"""Ends a command in one line and at once, although a save failed whose threads go on: orbax's and tensorstore's."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_PATIENCE_SECONDS = 5.0


class _WithoutEchoes:
    """Reports what nobody can catch, but for what tensorstore's threads say of a save that orbax has given up."""

    def __init__(self, report: Callable[[Any], object]):
        self._report = report

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self._report(unraisable)


@contextlib.contextmanager
def leave_hanging_saves() -> Iterator[None]:
    """Ends the process at once where it is about to exit with an error and a save still waits for its storage.

    A bucket may neither take what is written nor refuse it. Then the save is given up after orbax's time limit, but its
    threads go on waiting, and Python waits for them.
    """
    # It stays, since the echoes may come while the interpreter ends.
    if not isinstance(sys.unraisablehook, _WithoutEchoes):
        sys.unraisablehook = _WithoutEchoes(sys.unraisablehook)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code and _are_saving():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code)
        raise


def _are_saving() -> bool:
    """Whether threads of a save are still there after a moment in which they may end."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while any(type(thread).__module__.startswith("orbax.") for thread in threading.enumerate() if not thread.daemon):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.1)
    return False
