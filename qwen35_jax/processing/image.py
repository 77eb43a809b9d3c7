"""From the bytes of an image to patches, exactly as the reference makes them.

Pixels stay bytes. Whoever feeds the tower converts them as late as possible, with ``normalize``.

Letters: ``H`` rows and ``W`` columns of a picture, ``P`` patches, ``C`` values of a patch.

Source: ``Qwen2VLImageProcessor`` of transformers 5.23 (torchvision's backend, which the published files name).
"""

import contextlib
import functools
import io
import math
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image, UnidentifiedImageError

from qwen35_jax.processing.media import MediaError, MediaPolicy, Opened, describe, open_media
from qwen35_jax.processing.resize import resize_bicubic
from qwen35_jax.processing.settings import ImageSettings, VideoSettings

Result = TypeVar("Result")

MOST_OBLONG = 200
"""The longest side may be this many times the shortest, as in the reference."""

# Formats that people send. Pillow knows others, among them one that starts a program.
_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# From this orientation on, rows are stored as columns.
_FIRST_SIDEWAYS = 5
# Pillow decodes an image when it is first used, which two threads must not do to one image.
_given_images = threading.Lock()
# Every size is checked here before anything is decoded.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Returns the size that an image is resized to: multiples of ``factor``, an area within the limits.

    Raises:
      MediaError: one side is more than 200 times the other.

    Source: ``smart_resize`` of transformers' ``image_processing_qwen2_vl.py``.
    """
    if max(height, width) > MOST_OBLONG * min(height, width):
        raise MediaError(
            f"{width}x{height} pixels are too oblong: one side may be {MOST_OBLONG} times the other at most; cut the "
            "picture into parts."
        )
    # Python rounds halves to even, and so does the reference.
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * enlarge / factor) * factor
        columns = math.ceil(width * enlarge / factor) * factor
    return rows, columns


def load_image(source: Any, policy: MediaPolicy | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image: upright (EXIF), in RGB, the first picture of an animation, what is transparent on white.

    Values of 16 bits keep their upper 8.

    Args:
      source: see ``media``; an array is [H, W, 3] or [H, W, 4] or [H, W] of bytes.

    Raises:
      MediaError: it is no image, damaged or cut off, larger than ``policy.max_pixels``, or may not be opened.
    """
    policy = policy or MediaPolicy()
    return decode_image(open_media(source, policy), describe(source), policy)


def decode_image(opened: Opened, name: str, policy: MediaPolicy) -> UInt8[np.ndarray, "H W 3"]:
    """Does what `load_image` does with what ``open_media`` has found.

    Args:
      name: what messages call it.
    """
    if isinstance(opened, np.ndarray):
        _check_array(opened, name, policy)
        if opened.shape[2:] == (3,):
            return opened
        return _rgb(Image.fromarray(opened[:, :, 0] if opened.shape[2:] == (1,) else opened))
    return _read(opened, name, policy, _rgb)


def image_size(opened: Opened, name: str, policy: MediaPolicy) -> tuple[int, int]:
    """Returns the height and the width of an image as it is shown, from its header: nothing is decoded.

    Args:
      opened: what ``open_media`` has found.
      name: what messages call it.

    Raises:
      MediaError: as `load_image` does, except for what only decoding shows.
    """
    if isinstance(opened, np.ndarray):
        _check_array(opened, name, policy)
        return opened.shape[0], opened.shape[1]
    return _read(opened, name, policy, _shown_size)


def image_grid(height: int, width: int, settings: ImageSettings) -> tuple[int, int, int]:
    """Returns the frames (1), rows and columns of patches that an image of a size becomes.

    Raises:
      MediaError: as ``smart_resize`` does.
    """
    height, width = smart_resize(
        height, width, factor=settings.factor, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels
    )
    return 1, height // settings.patch_size, width // settings.patch_size


def image_patches(
    image: UInt8[np.ndarray, "H W 3"], settings: ImageSettings | None = None
) -> tuple[UInt8[np.ndarray, "P C"], Int32[np.ndarray, " 3"]]:
    """Resizes an image and cuts it into patches in merge-block order.

    Returns:
      The patches, with ``C`` in the order channel, picture, row, column; and the grid [1, rows, columns] in patches.

    Raises:
      MediaError: one side is more than 200 times the other.
    """
    settings = settings or ImageSettings()
    grid = image_grid(image.shape[0], image.shape[1], settings)
    planes = resize_bicubic(image, *(side * settings.patch_size for side in grid[1:]))
    frames = np.broadcast_to(planes, (settings.temporal_patch_size, *planes.shape))
    return cut_patches(frames, settings), np.array(grid, np.int32)


def cut_patches(
    planes: UInt8[np.ndarray, "n 3 H W"], settings: ImageSettings | VideoSettings
) -> UInt8[np.ndarray, "P C"]:
    """Cuts pictures, whose number and sides fit the settings, into patches in merge-block order."""
    side, merge, depth = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    count, _, height, width = planes.shape
    # One element holds a row of a patch, so that the transposition copies whole rows.
    rows = planes.view(f"V{side}") if planes.strides[-1] == 1 else np.ascontiguousarray(planes).view(f"V{side}")
    shape = (count // depth, depth, 3, height // side // merge, merge, side, width // side // merge, merge)
    patches = np.ascontiguousarray(rows.reshape(shape).transpose(0, 3, 6, 4, 7, 2, 1, 5))
    return patches.view(np.uint8).reshape(-1, 3 * depth * side * side)


def normalize(
    pixels: UInt8[np.ndarray, "P C"], out: Float32[np.ndarray, "P C"] | None = None
) -> Float32[np.ndarray, "P C"]:
    """Turns bytes into what the tower reads, from -1 to 1: ``x / 255``, less the mean 0.5, over the deviation 0.5.

    Args:
      out: an array to write into; a new one by default.
    """
    values = np.subtract(pixels, np.float32(127.5), out=out, dtype=np.float32)
    values /= np.float32(127.5)
    return values


def _read(
    opened: bytes | Path | Image.Image, name: str, policy: MediaPolicy, read: Callable[[Image.Image], Result]
) -> Result:
    """Returns what a function reads of an image whose header is in order."""
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(opened, Image.Image):
                stack.enter_context(_given_images)
                image = opened
            else:
                # From a name Pillow would map the file into memory, where it takes a turned TIFF for its upright size.
                file = io.BytesIO(opened) if isinstance(opened, bytes) else stack.enter_context(opened.open("rb"))
                image = stack.enter_context(Image.open(file, formats=_known_formats()))
            _check_size(*image.size, name, policy)
            if image.mode == "F":
                raise MediaError(f"{name} holds floating-point numbers; convert it to values from 0 to 255.")
            return read(image)
    except MediaError:
        raise
    except Image.DecompressionBombError as err:
        # Pillow raises it for pictures of more than twice its own limit, before it tells their size.
        most = min(policy.max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or policy.max_pixels))
        raise MediaError(f"{name} has more pixels than max_pixels={most}; reduce the picture.") from err
    # Pillow's readers raise whatever a damaged file makes them stumble over.
    except Exception as err:
        reason = (str(err).strip() or type(err).__name__).splitlines()[0].rstrip(".")
        if isinstance(err, UnidentifiedImageError):
            reason = f"it is damaged, or in none of the formats {', '.join(_known_formats())}"
        raise MediaError(f"{name} cannot be read as an image: {reason}.") from err


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Returns the formats that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _shown_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    # Of a TIFF it is the size after turning. Pillow would decode a PNG to look for EXIF behind the picture.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return height, width
    return (width, height) if _orientation(image) >= _FIRST_SIDEWAYS else (height, width)


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    # Pillow itself turns a TIFF when it decodes it, and then says so.
    image.load()
    turn = _TURNS.get(_orientation(image))
    if image.mode.startswith("I"):
        image = _upper_bits(image)
    elif "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return np.asarray(image if turn is None else image.transpose(turn))


def _orientation(image: Image.Image) -> int:
    """Returns how EXIF says that an image is turned or mirrored, from 1 (not at all) to 8."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    # EXIF is a format of its own; where it is damaged the picture may still be whole.
    except Exception:
        return 1


def _upper_bits(image: Image.Image) -> Image.Image:
    """Keeps the upper 8 of 16 bits, as Pillow itself does for colours; it would cut grey values off at 255."""
    values = np.asarray(image)
    if image.mode == "I":
        # Pillow's only type for what may hold 8, 16 or 32 bits.
        if values.min() < 0 or values.max() > 0xFFFF:
            raise MediaError("an image of 32-bit numbers cannot be read; convert it to values from 0 to 255.")
        if values.max() <= 0xFF:
            return Image.fromarray(values.astype(np.uint8))
    return Image.fromarray((values >> 8).astype(np.uint8))


def _check_array(array: np.ndarray, name: str, policy: MediaPolicy) -> None:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise MediaError(f"{name} is no image; give bytes (uint8) of the shape [height, width, 3].")
    _check_size(array.shape[1], array.shape[0], name, policy)


def _check_size(width: int, height: int, name: str, policy: MediaPolicy) -> None:
    if not width or not height:
        raise MediaError(f"{name} has no pixels.")
    if width * height > policy.max_pixels:
        raise MediaError(
            f"{name} has {width}x{height} pixels, more than max_pixels={policy.max_pixels}; reduce the picture."
        )
