"""Damaged images and videos: each is read, or refused with one line; none ends the process."""

import io

import numpy as np
import pytest
from PIL import Image

from qwen35_jax.processing.image import image_patches, load_image
from qwen35_jax.processing.media import MediaError, MediaPolicy
from qwen35_jax.processing.settings import ImageSettings
from qwen35_jax.processing.video import load_video
from tests.processing.videos import moving_square, video_file

POLICY = MediaPolicy(max_pixels=4_000_000)
SMALL = ImageSettings(min_pixels=4096, max_pixels=65_536)
IMAGE_FORMS = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "ICO", "PPM", "AVIF"]
VIDEO_FORMS = [
    ("mp4", "mpeg4"),
    ("avi", "mpeg4"),
    ("matroska", "libx264"),
    ("webm", "libvpx"),
    ("mpegts", "mpeg2video"),
    ("gif", "gif"),
]


@pytest.fixture(scope="module")
def files():
    """Returns whole files, (is it a video, content)."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    picture, found = Image.fromarray(pixels).resize((120, 90)), []
    for form in IMAGE_FORMS:
        file = io.BytesIO()
        picture.save(file, form, **({"exif": _exif()} if form == "JPEG" else {}))
        found.append((False, file.getvalue()))
    return found + [(True, video_file(moving_square(12), 10, *form)) for form in VIDEO_FORMS]


def _exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def damaged(rng, content: bytes) -> bytes:
    """Changes bytes anywhere or in the header, cuts the file off, takes a piece out or puts one in twice."""
    data = bytearray(content)
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
    kind = rng.integers(6)
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        del data[at : at + length]
    elif kind == 2:
        data[at:at] = data[at : at + length]
    elif kind == 3:
        data[at : at + length] = rng.integers(0, 256, size=length, dtype=np.uint8).tobytes()
    else:
        places = rng.integers(0, len(data) if kind == 4 else min(len(data), 100), size=rng.integers(1, 8))
        for place in places:
            data[place] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
def test_500_damaged_files_are_read_or_refused(files):
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        is_video, content = files[rng.integers(len(files))]
        try:
            if is_video:
                frames = load_video(damaged(rng, content), POLICY).frames
                assert frames.dtype == np.uint8 and frames.shape[3] == 3
            else:
                image_patches(load_image(damaged(rng, content), POLICY), SMALL)
        except MediaError as err:
            refused += 1
            assert len(str(err).splitlines()) == 1 and len(str(err)) < 400
    assert 100 < refused < 400, "some damage is harmless, and some is not"
