"""``--profile FIRST:LAST``: a trace of some steps, for XProf, TensorBoard or Perfetto."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

logger = logging.getLogger(__name__)


class Trace:
    """Traces the steps of a range, on the devices of process 0; leaving it as a context writes what was begun."""

    def __init__(self, folder: Path, steps: range):
        self._folder = folder
        self._steps = steps if jax.process_index() == 0 else range(0)
        self._running = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextlib.contextmanager
    def around(self, step: int, settle: Callable[[], object]) -> Iterator[None]:
        """Begins the trace before a step if it is the first of the range (or the first since), ends it after the last.

        Args:
          settle: waits until no step is running.
        """
        if step in self._steps and not self._running:
            settle()
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        yield
        if self._running and step == self._steps[-1]:
            settle()
            self.stop()

    def stop(self) -> None:
        """Writes the trace, if one is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            logger.info("trace written to %s", self._folder)
