"""How large images and videos are, from the headers of their files: nothing is decoded."""

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from qwen35_jax.processing.image import known_formats, orientation, unreadable_image
from qwen35_jax.processing.media import MediaError, MediaPolicy, describe
from qwen35_jax.processing.video import count_frames, read_container, unreadable_video

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
                file = io.BytesIO(image) if isinstance(image, bytes) else image
                image = stack.enter_context(Image.open(file, formats=known_formats()))
            (width, height), turned = image.size, _is_turned(image)
    # Pillow's readers raise whatever a damaged file makes them stumble over.
    except Exception as err:
        raise unreadable_image(source, err) from err
    return (width, height) if turned else (height, width)


def video_header(opened: Opened, source: Any, policy: MediaPolicy) -> VideoHeader:
    """Returns the frames of a video, counted without decoding them, and their size.

    Args:
      source: what it is called in messages.

    Raises:
      MediaError: it is no video, its frames are larger than ``policy.max_pixels``, or PyAV is absent.
    """
    if not isinstance(opened, bytes | Path):
        raise MediaError(f"{describe(source)} is no video; give a file, or frames as a list or an array [n, H, W, 3].")
    try:
        header, fps = read_container(opened, describe(source), policy, _counted)
    except MediaError:
        raise
    # FFmpeg's errors are of many classes, and a damaged file also makes PyAV itself stumble.
    except Exception as err:
        raise unreadable_video(source, err) from err
    header = header._replace(fps=fps)
    if not min(header.frames, header.height, header.width):
        raise MediaError(f"{describe(source)} holds no frames.")
    return header


def _counted(container: Any, stream: Any) -> VideoHeader:
    return VideoHeader(count_frames(container, stream), None, stream.codec_context.height, stream.codec_context.width)


def _is_turned(image: Image.Image) -> bool:
    if image.format == "PNG" and "exif" not in image.info:
        # Pillow would decode the picture to look behind it.
        return False
    return orientation(image) >= _TURNED
