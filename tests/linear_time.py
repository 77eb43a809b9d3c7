"""A check that text of any length is read in linear time, on a machine that is busy with other work."""

import gc
import time
from collections.abc import Callable

SHORT, LONG = 10_000, 400_000


def assert_linear(read: Callable[[str], object], unit: str, end: str = "") -> None:
    """Asserts that `read` takes linear time in a text that repeats `unit`.

    A text 40 times as long takes 40 times as long in linear time, and 1,600 times in quadratic time. The bound is their
    geometric mean: a busy machine does not come near it from either side.
    """
    assert seconds(read, unit, end, LONG) < 250 * max(seconds(read, unit, end, SHORT), 0.005)


def seconds(read: Callable[[str], object], unit: str, end: str, size: int) -> float:
    """Returns the CPU seconds of one reading; the collector stays out, since its work grows with the whole process."""
    text = unit * (size // len(unit)) + end
    gc.disable()
    try:
        started = time.process_time()
        read(text)
        return time.process_time() - started
    finally:
        gc.enable()
