"""An image or a video of a document: its size is known at once, its patches are made when they are needed."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

Grid = tuple[int, int, int]
"""Frames, rows and columns of patches."""


@dataclass
class Picture:
    """An image or a video; its patches are made once, in the thread of an executor."""

    grid: Grid
    decode: Callable[[], UInt8[np.ndarray, "P C"]]
    """Makes the patches; it raises a `train.data.rows.RowError` where it cannot."""
    content: Callable[[], bytes]
    """Returns what tells it from others of its size (`train.data.content`); it raises a RowError where it cannot."""
    timestamps: tuple[float, ...] = ()
    """Seconds of each frame of a video; an image has none."""
    _made: Future | None = field(default=None, init=False, repr=False)

    @property
    def num_patches(self) -> int:
        """Patches of all its frames."""
        frames, rows, columns = self.grid
        return frames * rows * columns

    def key(self) -> bytes:
        """Returns what decides its patches: its content, its grid and the times of its frames.

        Raises:
          RowError: its file cannot be read.
        """
        return self.content() + np.asarray(self.grid, "<i4").tobytes() + np.asarray(self.timestamps, "<f8").tobytes()

    @property
    def is_video(self) -> bool:
        return bool(self.timestamps)

    def start(self, executor: Executor) -> None:
        """Begins to make the patches, unless that has begun."""
        if self._made is None:
            self._made = executor.submit(self.decode)

    def patches(self) -> UInt8[np.ndarray, "P C"]:
        """Waits for the patches, or makes them.

        Raises:
          RowError: they cannot be made.
        """
        return self.decode() if self._made is None else self._made.result()

    def forget(self) -> None:
        """Frees the patches; they are made again if they are needed again."""
        self._made = None
