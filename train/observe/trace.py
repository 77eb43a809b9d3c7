"""``--profile FIRST:LAST``: a trace of some steps, for XProf, TensorBoard or Perfetto."""

import logging
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

    def starts_at(self, step: int) -> bool:
        """Whether the trace begins with this step (or, on resume, began with one before)."""
        return step in self._steps and not self._running

    def ends_at(self, step: int) -> bool:
        """Whether this step is the last one traced."""
        return self._running and step == self._steps[-1]

    def start(self) -> None:
        """Begins the trace; no step should be running."""
        jax.profiler.start_trace(str(self._folder))
        self._running = True

    def stop(self) -> None:
        """Writes the trace, if one is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            logger.info("trace written to %s", self._folder)
