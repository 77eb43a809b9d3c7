"""Small videos, written for tests."""

import io
from fractions import Fraction

import numpy as np
import pytest


def moving_square(count: int, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """Draws [count, H, W, 3] bytes: a bright square that moves over noise."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 120, size=(1, height, width, 3), dtype=np.uint8), count, axis=0)
    for index, frame in enumerate(frames):
        left = index * 5 % max(width - 16, 1)
        frame[:16, left : left + 16] = 40 + index * 7 % 200
    return frames


def video_file(frames, fps=10, form="mp4", codec="mpeg4", milliseconds=None) -> bytes:
    """Encodes frames.

    Args:
      milliseconds: the time of each frame, for a video of variable rate.
    """
    av = pytest.importorskip("av", reason="videos need PyAV")
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def turned(content: bytes) -> bytes:
    """Gives an MP4 file the matrix that a telephone held upright writes: a quarter turn clockwise."""
    one, plain, minus_one = b"\0\1\0\0", b"\0" * 4, b"\xff\xff\0\0"
    at = content.index(one + plain * 3 + one, content.index(b"tkhd"))
    return content[:at] + plain + one + plain + minus_one + plain + content[at + 20 :]


def decoded(content: bytes) -> tuple[np.ndarray, float]:
    """Decodes all frames; returns them and the frames a second."""
    av = pytest.importorskip("av", reason="videos need PyAV")
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, float(stream.average_rate)
