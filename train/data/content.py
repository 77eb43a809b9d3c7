"""What tells one image or video from another of the same size: a digest of its file, which need not be decoded."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qwen35_jax.processing.image import load_image
from qwen35_jax.processing.media import MediaError, MediaPolicy, Opened, describe, open_media

_new = partial(hashlib.blake2b, digest_size=16)


def content_of(opened: Opened | Sequence[Any], policy: MediaPolicy) -> bytes:
    """Returns 16 bytes that depend on the bytes of a file, wherever they lie, or on the pixels of what is none.

    Args:
      opened: what ``open_media`` returned, or the frames of a video.

    Raises:
      MediaError: it cannot be read.
    """
    if isinstance(opened, Path):
        try:
            with opened.open("rb") as file:
                return hashlib.file_digest(file, _new).digest()
        except OSError as err:
            raise MediaError(f"{describe(opened)} cannot be read: {err.strerror}.") from err
    found = _new()
    if isinstance(opened, bytes):
        found.update(opened)
    elif isinstance(opened, list | tuple):
        for frame in opened:
            found.update(content_of(open_media(frame, policy), policy))
    else:
        # Two pictures of Pillow may show the same and differ in mode, palette or orientation.
        pixels = load_image(opened, policy) if isinstance(opened, Image.Image) else np.asarray(opened)
        found.update(f"{pixels.dtype}{pixels.shape}".encode())
        found.update(np.ascontiguousarray(pixels).data)
    return found.digest()
