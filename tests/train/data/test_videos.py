"""Videos in training data: files and lists of frames become what the processor makes of them."""

import numpy as np
import pytest

from qwen35_jax.processing.image import image_size
from qwen35_jax.processing.media import MediaError, MediaPolicy
from qwen35_jax.processing.settings import VideoSettings
from qwen35_jax.processing.video import cut_frames, load_video, timestamps, video_header
from tests.processing.videos import moving_square, turned, video_file
from tests.train.data.pictures import ANSWER, USER, as_video, batches, documents, drawn, text

# As the data's settings are, which see.
SETTINGS = VideoSettings(max_pixels=2 * 96 * 96)


@pytest.fixture
def frames(tmp_path):
    """Nine frames, as files beside the data and as a video of four frames a second."""
    made = [drawn(64, 96, seed) for seed in range(9)]
    for number, frame in enumerate(made):
        frame.save(tmp_path / f"{number}.png")
    as_video(tmp_path / "a.mp4", made)
    return [f"{number}.png" for number in range(9)]


def asks(**fields):
    return {"messages": [USER | {"content": [{"type": "video", **fields}, text("What?")]}, ANSWER]}


def expected(seeing, source, settings=SETTINGS, **rates):
    loaded = load_video(source, None, settings, **rates)
    patches, (count, rows, columns) = cut_frames(loaded.frames, settings)
    times = timestamps(loaded.indices, loaded.fps)
    pads = "<|vision_start|>" + "<|video_pad|>" * int(rows * columns // 4) + "<|vision_end|>"
    shown = "".join(f"<{time:.1f} seconds>{pads}" for time in times)
    assert len(times) == count
    rendered = seeing.chat_template.render(asks()["messages"])
    return rendered.replace("<|vision_start|><|video_pad|><|vision_end|>", shown), patches


def test_a_file_is_as_the_processor_makes_it(write_rows, seeing, frames, tmp_path):
    words, patches = expected(seeing, str(tmp_path / "a.mp4"))
    assert len(patches) == 3 * 6 * 4 or len(patches) % 4 == 0
    for row in (asks(video="a.mp4"), asks() | {"videos": ["a.mp4"]}):
        [(ids, trained, positions, found)] = documents(batches(write_rows([row]), seeing), seeing)
        assert seeing.decode(ids.tolist(), skip_special_tokens=False) == words
        assert seeing.decode(ids[trained].tolist(), skip_special_tokens=False) == "It is red.<|im_end|>"
        np.testing.assert_array_equal(found, patches)
        assert positions.max() < len(ids)


def test_frames_are_as_the_processor_makes_them(write_rows, seeing, frames, tmp_path):
    paths = [str(tmp_path / frame) for frame in frames]
    for rates in ({"sample_fps": 1.0}, {"raw_fps": 3.0}):
        words, patches = expected(seeing, paths, **rates)
        [(ids, _, _, found)] = documents(batches(write_rows([asks(video=frames, **rates)]), seeing), seeing)
        assert seeing.decode(ids.tolist(), skip_special_tokens=False) == words
        np.testing.assert_array_equal(found, patches)


def test_options_of_an_item_count(write_rows, seeing, frames, tmp_path):
    settings = SETTINGS.limited({"num_frames": 2})
    _, patches = expected(seeing, str(tmp_path / "a.mp4"), settings)
    [(*_, found)] = documents(batches(write_rows([asks(video="a.mp4", num_frames=2)]), seeing), seeing)
    np.testing.assert_array_equal(found, patches)


def test_a_video_that_is_turned_upright(write_rows, seeing, tmp_path):
    (tmp_path / "a.mp4").write_bytes(turned(video_file(moving_square(9, 64, 96), fps=4)))
    words, patches = expected(seeing, str(tmp_path / "a.mp4"))
    [(ids, _, _, found)] = documents(batches(write_rows([asks(video="a.mp4")]), seeing), seeing)
    assert seeing.decode(ids.tolist(), skip_special_tokens=False) == words
    np.testing.assert_array_equal(found, patches)


def test_a_file_that_is_no_video_is_named(write_rows, seeing, frames):
    with pytest.raises(ValueError, match=r"line 1: video 1 of the row: .*0\.png' cannot be read"):
        list(batches(write_rows([asks(video="0.png")]), seeing))


def test_headers_are_read_of_the_formats_alone_that_are_decoded(frames, tmp_path):
    assert video_header(tmp_path / "a.mp4", "a.mp4", MediaPolicy()) == (9, 4.0, 64, 96)
    with pytest.raises(MediaError, match=r"0\.png cannot be read as a video: .* none of the formats ASF"):
        video_header(tmp_path / "0.png", "0.png", MediaPolicy())
    with pytest.raises(MediaError, match="96x64 pixels, more than max_pixels=1000"):
        video_header(tmp_path / "a.mp4", "a.mp4", MediaPolicy(max_pixels=1000))
    drawn(64, 96).save(tmp_path / "a.pcx")
    with pytest.raises(MediaError, match=r"a\.pcx cannot be read as an image: .* none of the formats AVIF"):
        image_size(tmp_path / "a.pcx", "a.pcx", MediaPolicy())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"video": [], "sample_fps": 1.0}, "video 1 of the row"),
        ({"video": ["0.png"], "sample_fps": "two"}, "sample_fps='two'"),
        ({"video": "a.mp4", "fps": -1}, "fps=-1"),
        ({"video": "a.mp4", "video_start": 1.0}, "video_start"),
    ],
)
def test_what_a_video_cannot_be_asked_for(fields, message, write_rows, seeing, frames):
    with pytest.raises(ValueError, match=rf"line 1: .*{message}"):
        list(batches(write_rows([asks(**fields)]), seeing))
