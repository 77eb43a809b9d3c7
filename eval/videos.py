"""Length and single frames of video files, by PyAV (extra ``video``)."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

UNKNOWN_FPS = 24.0
"""Frames a second of a video that does not say it, as in the models' own processor."""


class Length(NamedTuple):
    """The frames of a video, and how many of them are a second."""

    frames: int
    fps: float


def length_of(path: Path) -> Length:
    """Returns the length of a video.

    Raises:
      ValueError: it cannot be read, or PyAV is not installed.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            return Length(frames, float(stream.average_rate or UNKNOWN_FPS))
    except (av.FFmpegError, IndexError, OSError) as err:
        raise ValueError(f"{path} cannot be read as a video: {err}.") from err


def some_frames(path: Path, count: int) -> list[tuple[float, Image.Image]]:
    """Returns so many frames at equal distances, or near them, with their times in seconds.

    Raises:
      ValueError: as above.
    """
    av, found = _av(), []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            for number in range(count):
                container.seek((stream.duration or 0) * (2 * number + 1) // (2 * count), stream=stream)
                frame = next(container.decode(stream))
                found.append((float(frame.time or 0.0), frame.to_image()))
    except (av.FFmpegError, IndexError, OSError, StopIteration) as err:
        raise ValueError(f"{path} cannot be read as a video: {err}.") from err
    return found


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as err:
        raise ValueError("videos need the package av, which the extra video installs.") from err
