"""Ctrl-C ends a command in one line, at whatever moment it comes."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_AGAIN_SECONDS = 0.02


def end_quietly_while_importing() -> None:
    """Lets Ctrl-C end a command that still imports, which takes seconds, without a traceback.

    It does nothing where a program or a notebook imports this package.
    """
    # The name that Python gives a program while it imports the packages around a module to run.
    if (sys.argv[0] == "-m" or Path(sys.argv[0]).name == "qwen35") and _is_main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def every_interrupt_counts() -> Iterator[None]:
    """Lets every Ctrl-C in the block reach it as KeyboardInterrupt.

    Python prints and forgets one that comes while the garbage collector calls back, as it does JAX at each collection.
    Here that one is sent again.
    """
    if not _is_main_thread():
        yield
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    report = sys.unraisablehook

    def send_again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            report(unraisable)

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = report


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
