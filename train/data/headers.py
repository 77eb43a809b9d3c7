"""How large images and videos are, from the headers of their files: nothing is decoded."""

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from qwen35_jax.processing.media import MediaError, describe

_ORIENTATION = 0x0112
# From this value of the EXIF orientation on, rows are stored as columns.
_TURNED = 5

Opened = bytes | Path | Image.Image | np.ndarray
"""What `qwen35_jax.processing.media.open_media` returns."""


class VideoHeader(NamedTuple):
    """What the header of a video says."""

    frames: int
    fps: float | None
    height: int
    width: int


def image_size(opened: Opened, source: Any) -> tuple[int, int]:
    """Returns the height and the width of an image as it is shown.

    Args:
      source: what it is called in messages.

    Raises:
      MediaError: it is no image.
    """
    if isinstance(opened, np.ndarray):
        if opened.ndim not in (2, 3):
            raise MediaError(f"{describe(opened)} is no image; give bytes (uint8) of the shape [height, width, 3].")
        return opened.shape[0], opened.shape[1]
    try:
        with contextlib.ExitStack() as stack:
            image = opened
            if not isinstance(image, Image.Image):
                image = stack.enter_context(Image.open(io.BytesIO(image) if isinstance(image, bytes) else image))
            (width, height), turned = image.size, _is_turned(image)
    # Pillow's readers raise whatever a damaged file makes them stumble over.
    except Exception as err:
        raise MediaError(f"{describe(source)} cannot be read as an image: {_reason(err)}.") from err
    return (width, height) if turned else (height, width)


def video_header(opened: Opened, source: Any) -> VideoHeader:
    """Returns the frames of a video, counted without decoding them, and their size.

    Args:
      source: what it is called in messages.

    Raises:
      MediaError: it is no video, or PyAV is absent.
    """
    if not isinstance(opened, bytes | Path):
        raise MediaError(f"{describe(source)} is no video; give a file, or frames as a list or an array [n, H, W, 3].")
    try:
        import av
    except ImportError as err:
        raise MediaError("videos need the package av: pip install 'qwen35-jax[video]'.") from err
    try:
        # FFmpeg gets an open file, and no name from which it could find others.
        with (
            io.BytesIO(opened) if isinstance(opened, bytes) else opened.open("rb") as file,
            av.open(file, "r", options={"protocol_whitelist": "none"}) as container,
        ):
            stream = container.streams.video[0]
            rate, context = stream.average_rate or stream.guessed_rate, stream.codec_context
            frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            header = VideoHeader(frames, float(rate) if rate else None, context.height, context.width)
    # FFmpeg's errors are of many classes, and a damaged file also makes PyAV itself stumble.
    except Exception as err:
        raise MediaError(f"{describe(source)} cannot be read as a video: {_reason(err)}.") from err
    if not min(header.frames, header.height, header.width):
        raise MediaError(f"{describe(source)} holds no frames.")
    return header


def _is_turned(image: Image.Image) -> bool:
    if image.format == "PNG" and "exif" not in image.info:
        # Pillow would decode the picture to look behind it.
        return False
    try:
        return int(image.getexif().get(_ORIENTATION, 1)) >= _TURNED
    # EXIF is a format of its own; where it is damaged the picture may still be whole.
    except Exception:
        return False


def _reason(err: Exception) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0].rstrip(".")
