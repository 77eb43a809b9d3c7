"""What training shows of an image or a video is what the processor shows, whatever file it comes in."""

import numpy as np
import pytest
from PIL import Image

from qwen35_jax.processing import MediaPolicy, Processor
from qwen35_jax.processing.processor import Media as Asked
from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from tests.processing.videos import moving_square, turned, video_file
from tests.train.data.pictures import VISION, drawn
from train.data.rows import Media
from train.data.vision import VisionReader

IMAGES = [
    ("a.jpeg", "RGB"), ("a.jpeg", "CMYK"), ("a.png", "P"), ("a.png", "1"), ("a.png", "LA"), ("a.png", "I;16"),
    ("a.gif", "P"), ("a.webp", "RGBA"), ("a.tiff", "CMYK"), ("a.tiff", "L"), ("a.bmp", "RGB"), ("a.ppm", "L"),
]  # fmt: skip
VIDEOS = [
    ("mp4", "mpeg4"), ("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx"), ("mpegts", "libx264"),
    ("avi", "mpeg4"), ("gif", "gif"), ("flv", "flv1"), ("asf", "wmv2"),
]  # fmt: skip
FRAMES = [{"sample_fps": 2}, {"raw_fps": 3}, {"raw_fps": 3, "num_frames": 3, "sample_fps": None}]


@pytest.fixture
def check(seeing, tmp_path):
    """Compares what both make of one image or video."""
    reader = VisionReader(VISION, ImageSettings(), VideoSettings(), seeing)
    processor = Processor(seeing, reader._image, reader._video, MediaPolicy(root=tmp_path))

    def compare(kind, source, options=None):
        [picture] = reader.open([Media(kind, source, options or {})], tmp_path)
        want = processor.item(Asked(kind, source, options or {}))
        assert (picture.grid, picture.timestamps) == (tuple(want.grid), want.timestamps)
        np.testing.assert_array_equal(picture.patches(), want.patches)

    return compare


@pytest.mark.parametrize(("name", "mode"), IMAGES)
def test_images(name, mode, check, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn(64, 96).convert("I" if mode == "I;16" else mode).convert(mode).save(tmp_path / name, exif=exif)
    check("image", name)


@pytest.mark.parametrize("shape", [(64, 96), (64, 96, 1), (64, 96, 3), (64, 96, 4)])
def test_arrays(shape, check):
    check("image", np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@pytest.mark.parametrize("count", [1, 2, 9, 40])
@pytest.mark.parametrize(("form", "codec"), VIDEOS)
def test_videos(form, codec, count, check):
    content = video_file(moving_square(count), fps=29.97, form=form, codec=codec)
    check("video", content)
    if form == "mp4":
        check("video", turned(content), {"fps": 7})


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("options", FRAMES)
def test_frames(options, count, check):
    check("video", moving_square(count), options)
    check("video", list(moving_square(count)), options)
