"""From a video to patches: which frames, how large, and at what time each lies.

Letters: ``n`` frames, ``H`` rows and ``W`` columns of a frame, ``P`` patches, ``C`` values of a patch.

Source: ``Qwen3VLVideoProcessor`` of transformers. Where its releases differ, ours is as 4.57.6 and 5.23: the number of
frames is rounded to whole patches, half to even; only 5.2.0 rounds up.
"""

import io
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from qwen35_jax.processing.image import MOST_OBLONG, cut_patches, load_image
from qwen35_jax.processing.media import MediaError, MediaPolicy, Opened, describe, open_media
from qwen35_jax.processing.resize import resize_bicubic
from qwen35_jax.processing.settings import VideoSettings, positive

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

UNKNOWN_FPS = 24.0
"""Frames a second of a video that does not say it, as in the reference."""

# FFmpeg knows others, and some of them open further files and addresses.
_FORMATS = "asf,avi,flv,gif,matroska,mov,mpeg,mpegts,ogg,webm"
# A file that lacks a few of its frames is one whose header counts otherwise; one that lacks more has been cut off.
_WHOLE = 0.9


class VideoHeader(NamedTuple):
    """How many frames a video has, how many a second (None if it does not say), and their size as they are shown."""

    frames: int
    fps: float | None
    height: int
    width: int


class LoadedVideo(NamedTuple):
    """The chosen frames, the video's frames a second, and the places of the chosen ones among all."""

    frames: UInt8[np.ndarray, "n H W 3"]
    fps: float
    indices: Int64[np.ndarray, " n"]


def sample_frames(total: int, fps: float | None, settings: VideoSettings | None = None) -> Int64[np.ndarray, " n"]:
    """Chooses frames at equal distances, the first and the last included; the only frame of a video twice.

    Args:
      total: frames of the video.
      fps: its frames a second; None if unknown.

    Source: ``Qwen3VLVideoProcessor.sample_frames``, which cannot go on with a single frame.
    """
    settings = settings or VideoSettings()
    count = settings.num_frames
    if count is None:
        count = int(total / (fps or UNKNOWN_FPS) * settings.fps)
        count = min(max(count, settings.min_frames), settings.max_frames, total)
    return np.linspace(0, total - 1, max(count, settings.temporal_patch_size)).round().astype(np.int64)


def frame_size(count: int, height: int, width: int, *, settings: VideoSettings | None = None) -> tuple[int, int]:
    """Returns the size that frames are resized to: multiples of the factor, with all pixels within the limits.

    Args:
      count: chosen frames.

    Raises:
      MediaError: one side is more than 200 times the other.

    Source: ``smart_resize`` of transformers' ``video_processing_qwen3_vl.py``.
    """
    settings = settings or VideoSettings()
    factor, depth = settings.factor, settings.temporal_patch_size
    most, least = settings.max_pixels, settings.min_pixels
    if settings.cap_pixels_per_frame:
        cap = min(settings.max_video_tokens * factor**2, most // count)
        most = count * max(cap, int(least * 1.05))
    most = min(most, count * (settings.max_frame_pixels or most))
    least = min(max(least, count * (settings.min_frame_pixels or 0)), most)
    if height < factor or width < factor:
        enlarge = max(factor / height, factor / width)
        height, width = int(height * enlarge), int(width * enlarge)
    if max(height, width) > MOST_OBLONG * min(height, width):
        raise MediaError(f"{width}x{height} pixels are too oblong: one side may be {MOST_OBLONG} times the other.")
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    frames = round(count / depth) * depth
    if frames * rows * columns > most:
        shrink = math.sqrt(count * height * width / most)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif frames * rows * columns < least:
        enlarge = math.sqrt(least / (count * height * width))
        rows = math.ceil(height * enlarge / factor) * factor
        columns = math.ceil(width * enlarge / factor) * factor
    return rows, columns


def timestamps(indices: Sequence[int] | Int64[np.ndarray, " n"], fps: float, depth: int = 2) -> list[float]:
    """Returns the time of each temporal patch in seconds: the middle of its first and its last frame.

    Args:
      depth: frames of a patch; the last frame stands for those that lack.
    """
    times = [int(index) / fps for index in indices]
    times += times[-1:] * (-len(times) % depth)
    return [(times[first] + times[first + depth - 1]) / 2 for first in range(0, len(times), depth)]


def load_video(
    source: Any,
    policy: MediaPolicy | None = None,
    settings: VideoSettings | None = None,
    *,
    raw_fps: Any = None,
    sample_fps: Any = None,
) -> LoadedVideo:
    """Chooses frames of a video and decodes them. They have their final size, so that long videos need little memory.

    Args:
      source: see ``media``; or the frames themselves, as an array [n, H, W, 3] of bytes or a list of images.
      raw_fps: for frames: the number of them that are a second, of which some are chosen; by default 24.
      sample_fps: the same, and all of them are taken. Both are checked, since strangers write them.

    Raises:
      MediaError: it is no video, damaged or cut off, too large, or may not be opened; PyAV is needed and absent.
    """
    policy, settings = policy or MediaPolicy(), settings or VideoSettings()
    if are_frames(source):
        return _from_frames(source, policy, settings, raw_fps, sample_fps)
    return decode_video(open_media(source, policy), describe(source), policy, settings)


def are_frames(source: Any) -> bool:
    """Whether a source is the frames of a video themselves."""
    return isinstance(source, (list, tuple)) or (isinstance(source, np.ndarray) and source.ndim == 4)


def choose_frames(
    total: int, settings: VideoSettings, *, raw_fps: Any = None, sample_fps: Any = None
) -> tuple[Int64[np.ndarray, " n"], float]:
    """Chooses among frames that were given themselves; returns their places, and how many of all are a second.

    Args:
      total: how many were given.
      raw_fps, sample_fps: see `load_video`.

    Raises:
      MediaError: there is no frame, or what is given is no rate.
    """
    if not total:
        raise MediaError("a list of 0 is a video without frames.")
    if sample_fps is not None:
        fps = positive("sample_fps", sample_fps)
        return np.resize(np.arange(total), max(total, settings.temporal_patch_size)), fps
    fps = UNKNOWN_FPS if raw_fps is None else positive("raw_fps", raw_fps)
    return sample_frames(total, fps, settings), fps


def video_header(opened: Opened, name: str, policy: MediaPolicy) -> VideoHeader:
    """Reads what must be known before frames are chosen. One frame is decoded; the others are counted.

    Args:
      opened: what ``open_media`` has found.
      name: what messages call it.

    Raises:
      MediaError: it is no video, its frames are larger than ``policy.max_pixels``, or PyAV is absent.
    """
    return _read(opened, name, policy, lambda container, stream: _header(container, stream, name))


def decode_video(opened: Opened, name: str, policy: MediaPolicy, settings: VideoSettings) -> LoadedVideo:
    """Does what `load_video` does with what ``open_media`` has found of a file.

    Args:
      name: what messages call it.
    """
    counted, fps, *_ = video_header(opened, name, policy)
    indices, frames, found = _chosen(opened, name, policy, settings, counted, fps)
    if found < _WHOLE * counted or not found:
        raise MediaError(f"{name} is damaged or cut off: {found} of its {counted} frames can be read.")
    if found <= indices[-1]:
        indices, frames, _ = _chosen(opened, name, policy, settings, found, fps)
    return LoadedVideo(_stacked([frames[index] for index in indices.tolist()]), fps or UNKNOWN_FPS, indices)


def video_patches(
    frames: UInt8[np.ndarray, "n H W 3"], settings: VideoSettings | None = None
) -> tuple[UInt8[np.ndarray, "P C"], Int32[np.ndarray, " 3"]]:
    """Resizes frames and cuts them into patches, frame pair by frame pair, in merge-block order.

    Returns:
      The patches, with ``C`` in the order channel, frame, row, column; and the grid [frame pairs, rows, columns].
    """
    settings = settings or VideoSettings()
    size = frame_size(max(len(frames), settings.temporal_patch_size), *frames.shape[1:3], settings=settings)
    return cut_frames(_stacked([_resized(frame, size) for frame in frames]), settings)


def cut_frames(
    frames: UInt8[np.ndarray, "n H W 3"], settings: VideoSettings | None = None
) -> tuple[UInt8[np.ndarray, "P C"], Int32[np.ndarray, " 3"]]:
    """Does the same with frames that have their final size, as ``load_video`` returns them."""
    settings = settings or VideoSettings()
    planes = frames.transpose(0, 3, 1, 2)
    missing = -len(planes) % settings.temporal_patch_size
    if missing:
        planes = np.concatenate([planes, np.repeat(planes[-1:], missing, axis=0)])
    count, _, height, width = planes.shape
    side = settings.patch_size
    grid = np.array([count // settings.temporal_patch_size, height // side, width // side], np.int32)
    return cut_patches(planes, settings), grid


def _resized(frame: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes a frame; it stays plane by plane in memory, as patches need it."""
    return resize_bicubic(frame, *size).transpose(1, 2, 0)


def _stacked(frames: Sequence[np.ndarray]) -> UInt8[np.ndarray, "n H W 3"]:
    return np.stack([frame.transpose(2, 0, 1) for frame in frames]).transpose(0, 2, 3, 1)


def _from_frames(
    source: Any, policy: MediaPolicy, settings: VideoSettings, raw_fps: Any, sample_fps: Any
) -> LoadedVideo:
    indices, fps = choose_frames(len(source), settings, raw_fps=raw_fps, sample_fps=sample_fps)
    if raw_fps is None and sample_fps is None:
        logger.warning("A video of frames does not say how many are a second; %g is taken: set raw_fps.", UNKNOWN_FPS)
    frames, size = {}, None
    for index in indices.tolist():
        if index not in frames:
            image = load_image(source[index], policy)
            size = size or (image.shape, frame_size(len(indices), *image.shape[:2], settings=settings))
            if image.shape != size[0]:
                raise MediaError(
                    f"the frames of a video differ in size: {image.shape[:2]} and {size[0][:2]}; give frames of one."
                )
            frames[index] = _resized(image, size[1])
    return LoadedVideo(_stacked([frames[index] for index in indices.tolist()]), fps, indices)


def _chosen(
    opened: Opened, name: str, policy: MediaPolicy, settings: VideoSettings, total: int, fps: float | None
) -> tuple[Int64[np.ndarray, " n"], dict[int, np.ndarray], int]:
    """Returns the places of the chosen frames, these by their place, and how many frames have been seen."""
    indices = sample_frames(total, fps, settings)
    wanted = set(indices.tolist())

    def decode(container: Any, stream: Any) -> tuple[dict[int, np.ndarray], int]:
        frames, size, found = {}, None, 0
        for index, frame in enumerate(container.decode(stream)):
            found = index + 1
            if index in wanted:
                _check_frame(frame.width, frame.height, name, policy)
                picture = np.rot90(frame.to_ndarray(format="rgb24"), _quarter_turns(frame))
                size = size or frame_size(len(indices), *picture.shape[:2], settings=settings)
                frames[index] = _resized(picture, size)
            if found == total:
                break
        return frames, found

    return indices, *_read(opened, name, policy, decode)


def _header(container: Any, stream: Any, name: str) -> VideoHeader:
    """Decodes up to the first frame, which alone says how it is turned; counts packets where there is no number."""
    # Several threads would have to begin with as many frames.
    stream.thread_type = "NONE"
    packets, first = 0, None
    for packet in container.demux(stream):
        packets += packet.size > 0
        first = first or next(iter(packet.decode()), None)
        if first is not None and stream.frames:
            break
    if first is None:
        raise MediaError(f"{name} holds no frames.")
    height, width = first.height, first.width
    if _quarter_turns(first) % 2:
        height, width = width, height
    rate = stream.average_rate or stream.guessed_rate
    return VideoHeader(stream.frames or packets, float(rate) if rate else None, height, width)


def _quarter_turns(frame: Any) -> int:
    return round(frame.rotation / 90)


def _check_frame(width: int, height: int, name: str, policy: MediaPolicy) -> None:
    if width * height > policy.max_pixels:
        raise MediaError(f"{name} has frames of {width}x{height} pixels, more than max_pixels={policy.max_pixels}.")


def _read(opened: Opened, name: str, policy: MediaPolicy, read: Callable[[Any, Any], Result]) -> Result:
    """Returns what a function reads of a file and its first video."""
    if not isinstance(opened, bytes | Path):
        raise MediaError(f"{name} is no video; give a file, or frames as a list or an array [n, H, W, 3].")
    try:
        import av
    except ImportError as err:
        raise MediaError(
            "videos need the package av; install the extra in the checkout: pip install -e '.[video]'"
        ) from err
    try:
        # FFmpeg gets an open file, and no name from which it could find others.
        file: IO[bytes] = io.BytesIO(opened) if isinstance(opened, bytes) else opened.open("rb")
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
        with file, av.open(file, container_options=options) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise MediaError(f"{name} holds no video; give a file that has pictures.")
            _check_frame(stream.codec_context.width, stream.codec_context.height, name, policy)
            stream.thread_type = "AUTO"
            return read(container, stream)
    except MediaError:
        raise
    # FFmpeg's errors are of many classes, and a damaged file also makes PyAV itself stumble.
    except Exception as err:
        reason = (getattr(err, "strerror", None) or str(err).strip() or type(err).__name__).splitlines()[0].rstrip(".")
        raise MediaError(
            f"{name} cannot be read as a video: {reason}. It is damaged, or in none of the formats "
            f"{_FORMATS.upper().replace(',', ', ')}."
        ) from err
