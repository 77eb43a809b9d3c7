"""SIGTERM, by which a machine announces that it is taken away: save, and leave with a code of its own.

The same command, started again, goes on after the last step.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75
"""``EX_TEMPFAIL`` of sysexits.h: nothing is wrong, try again later."""


class Preempted(SystemExit):
    """Ends the process with `EXIT_CODE` after the state was saved."""

    def __init__(self, step: int):
        super().__init__(EXIT_CODE)
        self.step = step


@contextlib.contextmanager
def watch_for_preemption() -> Iterator[Callable[[int], bool]]:
    """Yields ``is_due(step)``: whether to save and leave after this step.

    One process is due at the first call after its signal. Several agree through JAX's coordination service: each must
    ask after every step, and all are due after the same one, the next that none has reached when the first signal
    arrives.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received = []
    previous = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield lambda step: bool(received)
    finally:
        # None: a handler that Python did not install and cannot put back.
        signal.signal(signal.SIGTERM, previous if previous is not None else signal.SIG_DFL)
