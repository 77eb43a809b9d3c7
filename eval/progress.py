"""How far a run is: tokens a second, finished responses, and how long it may still take."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from eval.backends.base import Backend, Request


class Progress:
    """Shows a bar on the standard error while responses are written."""

    def __init__(self, backend: Backend, requests: Sequence[Request]):
        self._backend, self._num_correct = backend, 0
        self._bar = tqdm(total=len(requests), unit="sample", file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def finish(self, place: int, sample: Mapping[str, Any]) -> None:
        """Takes note of a finished response, whose request has this place."""
        self._num_correct += sample["correct"]
        self._bar.set_postfix(correct=self._num_correct, refresh=False)
        self._bar.update()
