"""SIGTERM, by which a machine announces that it is taken away, and Ctrl-C: save, and leave with a code of its own.

The same command, started again, goes on after the last step. A second Ctrl-C ends the run at once.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

EXIT_CODE = 75
"""``EX_TEMPFAIL`` of sysexits.h: nothing is wrong, try again later."""


class Preempted(SystemExit):
    """Ends the process with `EXIT_CODE` after the state was saved."""

    def __init__(self, step: int):
        super().__init__(EXIT_CODE)
        logger.info("step %d is saved; run the same command again to go on", step)
        self.step = step


@contextlib.contextmanager
def watch_for_preemption() -> Iterator[Callable[[int], bool]]:
    """Yields ``is_due(step)``: whether to save and leave after this step.

    One process is due at the first call after its signal. The first Ctrl-C counts as SIGTERM; the second raises
    KeyboardInterrupt. Several processes agree through JAX's coordination service: each must
    ask after every step, and all are due after the same one, the next that none has reached when the first signal
    arrives.
    """
    received = []

    def receive(number: int, _: object) -> None:
        if number == signal.SIGINT:
            # The next one goes to Python's own handler.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            logger.info("interrupted: saving after this step; Ctrl-C once more ends the run at once")
        received.append(True)
        if jax.process_count() > 1 and number == signal.SIGINT:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other processes

    # With several processes SIGTERM is JAX's own.
    watched = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    previous = [(number, signal.signal(number, receive)) for number in watched]
    try:
        if jax.process_count() > 1:
            yield multihost_utils.reached_preemption_sync_point
        else:
            yield lambda step: bool(received)
    finally:
        for number, handler in previous:
            # None: a handler that Python did not install and cannot put back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
