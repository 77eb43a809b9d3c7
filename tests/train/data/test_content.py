"""What tells images and videos apart: their content, their size and the frames that are chosen of them."""

import numpy as np
import pytest
from PIL import Image

from qwen35_jax.processing.media import MediaError, MediaPolicy
from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from tests.train.data.pictures import VISION, as_png, drawn
from train.data.content import content_of
from train.data.rows import Media, RowError
from train.data.vision import VisionReader

POLICY = MediaPolicy()


def test_the_bytes_of_a_file_count_wherever_they_lie(tmp_path):
    one, other = as_png(drawn(32, 64)), as_png(drawn(32, 64, seed=1))
    (tmp_path / "a.png").write_bytes(one)
    assert content_of(tmp_path / "a.png", POLICY) == content_of(one, POLICY) != content_of(other, POLICY)
    assert len(content_of(one, POLICY)) == 16
    (tmp_path / "a.png").unlink()
    with pytest.raises(MediaError, match=r"a\.png' cannot be read: No such file"):
        content_of(tmp_path / "a.png", POLICY)


def test_pictures_of_pillow_count_by_what_they_show():
    image = drawn(32, 64)
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    shown = palette.convert("RGB")
    assert content_of(palette, POLICY) == content_of(shown, POLICY)
    swapped = palette.copy()
    swapped.putpalette(palette.getpalette()[::-1])
    assert swapped.tobytes() == palette.tobytes() and content_of(swapped, POLICY) != content_of(palette, POLICY)


def test_arrays_count_by_shape_and_bytes_and_videos_by_the_order_of_their_frames():
    array = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    others = [array + 1, array.reshape(6, 4, 3), array[::-1]]
    assert content_of(array, POLICY) == content_of(array.copy(), POLICY)
    assert len({content_of(each, POLICY) for each in (array, *others)}) == 4
    frames = [array, array + 1]
    assert content_of(frames, POLICY) == content_of(tuple(frames), POLICY) != content_of(frames[::-1], POLICY)


def test_size_and_chosen_frames_are_part_of_a_key(tmp_path, seeing):
    reader = VisionReader(VISION, ImageSettings(), VideoSettings(), seeing)

    def key(kind, source, **options):
        [picture] = reader.open([Media(kind, source, options)], tmp_path)
        return picture.key()

    drawn(64, 64).save(tmp_path / "a.png")
    assert key("image", "a.png") == key("image", (tmp_path / "a.png").read_bytes())
    assert key("image", "a.png") != key("image", "a.png", max_pixels=1024)
    frames = [np.full((32, 32, 3), shade, np.uint8) for shade in range(12)]
    chosen = [{"sample_fps": 2.0}, {"sample_fps": 4.0}, {"raw_fps": 2.0}, {"raw_fps": 6.0}]
    assert len({key("video", frames, **each) for each in chosen}) == 3
    assert key("video", frames, sample_fps=2.0) == key("video", frames, raw_fps=2.0)


def test_a_file_that_has_gone_is_named_with_its_row(tmp_path, seeing):
    reader = VisionReader(VISION, ImageSettings(), VideoSettings(), seeing)
    drawn(64, 64).save(tmp_path / "a.png")
    [picture] = reader.open([Media("image", "a.png")], tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(RowError, match=r"image 1 of the row: .*a\.png' cannot be read"):
        picture.key()
