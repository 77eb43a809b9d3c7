"""Spreads work over threads. Decoding and arithmetic on arrays let other Python threads run meanwhile.

Only the main thread spreads its work. A thread that somebody else made is one of several that share the machine.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")

_MOST = 16


def in_threads(function: Callable[..., Result], *arguments: Sequence[Any]) -> list[Result]:
    """Does what ``list(map(function, *arguments))`` does, several at a time."""
    count = min(_num_threads(), len(arguments[0]))
    if count < 2:
        return list(map(function, *arguments))
    with ThreadPoolExecutor(count, "processing") as pool:
        return list(pool.map(function, *arguments))


def in_shares(function: Callable[[range], None], places: range) -> None:
    """Calls a function with a share of the places in each thread."""
    shares = min(_num_threads(), len(places)) or 1
    size = -(-len(places) // shares) or 1
    in_threads(function, [places[first : first + size] for first in range(0, len(places), size)])


def _num_threads() -> int:
    if threading.current_thread() is not threading.main_thread():
        return 1
    return min(os.cpu_count() or 1, _MOST)
