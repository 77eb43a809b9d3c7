"""Small copies of the images and videos of a question, as addresses that hold them."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eval.backends.media import data_uri
from eval.tasks.media import StoredImage, media_of
from eval.videos import some_frames
from qwen35_jax.processing.image import load_image

ALL_BYTES = 3_000_000
"""What all copies of a page may take."""
_SIDES = (320, 224, 160, 96)
"""Longest sides in pixels, the largest that has room counts."""
_MOST_BYTES = 48_000
_MOST_IMAGES = 7
_FRAMES = 4
_QUALITY = 60


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A small copy of a picture.

    Attributes:
      name: what it shows, such as ``image 1``, or why it cannot be shown.
      source: its address; empty where it cannot be shown.
      width, height: in pixels.
    """

    name: str
    source: str = ""
    width: int = 0
    height: int = 0


def of_messages(messages: Sequence[Mapping[str, Any]], room: int) -> tuple[Thumbnail, ...]:
    """Returns copies of what a conversation shows; of a video some frames.

    Args:
      room: bytes that they may take together, about.
    """
    parts = media_of(messages)[:_MOST_IMAGES]
    each = min(room // max(1, len(parts)), _MOST_BYTES)
    found: list[Thumbnail] = []
    for number, part in enumerate(parts, start=1):
        if part["type"] == "video":
            found += _of_video(Path(str(part["video"])), each)
        elif isinstance(part["image"], StoredImage):
            found += _of_image(part["image"], f"image {number}", each)
    return tuple(found)


def _of_image(image: StoredImage, name: str, room: int) -> list[Thumbnail]:
    if image.is_missing:  # stored answers are scored without images
        return []
    try:
        # As the model sees it: upright, and what is transparent on white.
        return [_small(Image.fromarray(load_image(image.read())), name, room)]
    except (OSError, ValueError) as err:
        return [Thumbnail(f"{name} cannot be shown: {err}")]


def _small(image: Image.Image, name: str, room: int) -> Thumbnail:
    for side in _SIDES:
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY)
        source = data_uri(buffer.getvalue())
        if len(source) <= room:
            return Thumbnail(name, source, *image.size)
    return Thumbnail(f"{name} is left out, for the page has no room")


def _of_video(path: Path, room: int) -> list[Thumbnail]:
    if not path.is_file():
        return []
    try:
        frames = some_frames(path, _FRAMES)
    except ValueError as err:
        return [Thumbnail(f"{path.name} cannot be shown: {err}")]
    return [_small(image, f"{path.name}, {time:.0f} s", room // _FRAMES) for time, image in frames]
