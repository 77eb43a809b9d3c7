"""Videos against transformers' rules, and odd videos."""

import io
import logging
import sys

import numpy as np
import pytest
from PIL import Image

from qwen35_jax.processing.media import MediaError, MediaPolicy
from qwen35_jax.processing.settings import VideoSettings
from qwen35_jax.processing.video import cut_frames, frame_size, load_video, sample_frames, timestamps, video_patches
from tests.processing.reference_images import torch_resize
from tests.processing.videos import decoded, moving_square, turned, video_file

# (format, codec): two that say how many frames they hold, and three that do not.
FORMS = [("mp4", "mpeg4"), ("avi", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx"), ("mpegts", "mpeg2video")]


@pytest.fixture(scope="module")
def hf():
    return pytest.importorskip(
        "transformers.models.qwen3_vl.video_processing_qwen3_vl", reason="compares with transformers"
    )


def picture_file():
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    return file.getvalue()


def reference_indices(hf, total, rate, **options):
    from transformers.video_utils import VideoMetadata

    class Published:
        fps, min_frames, max_frames = 2, 4, 768

    metadata = VideoMetadata(total_num_frames=total, fps=rate)
    return hf.Qwen3VLVideoProcessor.sample_frames(Published, metadata, **options)


def reference_patches(hf, frames):
    """Resizes with torch, as torchvision does, and leaves the rest to transformers."""
    torch = pytest.importorskip("torch", reason="the reference runs on torch")
    size = hf.smart_resize(len(frames), *frames.shape[1:3], 2, 32, 4096, 25_165_824)
    planes = torch.from_numpy(torch_resize(frames.transpose(0, 3, 1, 2), *size))[None]
    patches, *grid = hf.Qwen3VLVideoProcessor.patchify(None, planes, 16, 2, 2)
    return patches[0].numpy(), grid


def random_video(number):
    """Returns a small video of a random length, size, rate and format; every fifth has a variable rate."""
    rng = np.random.default_rng(number)
    form, codec = FORMS[number % len(FORMS)]
    frames = moving_square(int(rng.integers(2, 50)), *(2 * rng.integers(8, 60, size=2)).tolist(), seed=number)
    if number % 5 == 2:
        times = np.cumsum(rng.integers(20, 700, size=len(frames))).tolist()
        return video_file(frames, 10, form, codec, milliseconds=times)
    rates = [25, 30] if form == "mpegts" else [3, 10, 24, 30_000 / 1001]
    return video_file(frames, float(rng.choice(rates)), form, codec)


def test_40_videos_follow_the_reference(hf):
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    for number in range(40):
        content = random_video(number)
        frames, rate = decoded(content)
        indices = reference_indices(hf, len(frames), rate)
        want, want_grid = reference_patches(hf, frames[indices])
        video = load_video(content)
        np.testing.assert_array_equal(video.indices, indices)
        assert video.fps == rate
        patches, grid = cut_frames(video.frames)
        assert grid.tolist() == want_grid
        np.testing.assert_array_equal(patches, want)
        seconds = Qwen3VLProcessor._calculate_timestamps(None, indices, rate, 2)
        assert timestamps(video.indices, video.fps) == seconds


def test_frames_are_chosen_as_the_reference_chooses_them(hf):
    rng = np.random.default_rng(0)
    for _ in range(2000):
        total = int(10 ** rng.uniform(0.31, 5))
        fps = float(rng.choice([None, 1, 10, 23.976, 29.97, 60, 1000]) or 24)
        options = [{}, {"fps": float(rng.uniform(0.1, 30))}, {"num_frames": int(rng.integers(2, 50))}][rng.integers(3)]
        got = sample_frames(total, fps, VideoSettings().limited(options))
        np.testing.assert_array_equal(got, reference_indices(hf, total, fps, **options))


def test_sizes_are_those_of_the_reference(hf):
    rng = np.random.default_rng(0)
    for _ in range(2000):
        count, (height, width) = int(rng.integers(2, 769)), (10 ** rng.uniform(1, 3.7, size=2)).astype(int).tolist()
        if max(height, width) > 150 * min(height, width):
            continue
        assert frame_size(count, height, width) == hf.smart_resize(count, height, width, 2, 32, 4096, 25_165_824)


def test_the_number_of_frames_is_rounded_half_to_even():
    """As transformers 4.57.6 and 5.23 do; with 5.2.0's 6 for 5 frames this video would have to shrink."""
    settings = VideoSettings(max_pixels=4 * 320 * 320)
    assert frame_size(5, 320, 320, settings=settings) == (320, 320)
    assert frame_size(6, 320, 320, settings=settings) == (256, 256)


def test_the_cap_of_qwen_vl_utils_is_the_references(hf):
    settings = VideoSettings.from_json({"cap_pixels_per_frame": True})
    for count, height, width in ((4, 1080, 1920), (768, 1080, 1920), (20, 64, 64)):
        most = count * max(min(768 * 1024, 25_165_824 // count), int(4096 * 1.05))
        assert frame_size(count, height, width, settings=settings) == hf.smart_resize(
            count, height, width, 2, 32, 4096, most
        )


def test_a_video_of_one_frame_is_a_pair():
    video = load_video(video_file(moving_square(1)))
    assert video.indices.tolist() == [0, 0]
    assert cut_frames(video.frames)[1].tolist() == [1, 4, 6]
    assert timestamps(video.indices, video.fps) == [0.0]
    assert video_patches(moving_square(1))[1].tolist() == [1, 4, 6]


def test_an_odd_last_frame_is_taken_twice():
    frames = moving_square(5)
    patches, grid = video_patches(frames)
    assert grid.tolist() == [3, 4, 6]
    last = patches.reshape(3, -1, 3, 2, 256)[2]
    np.testing.assert_array_equal(last[:, :, 0], last[:, :, 1])
    assert timestamps([0, 2, 3, 5, 8], 2.0) == [0.5, 2.0, 4.0]


def test_frames_need_no_decoder(tmp_path):
    frames = moving_square(9)
    Image.fromarray(frames[0]).save(tmp_path / "first.png")
    pictures = [tmp_path / "first.png", *map(Image.fromarray, frames[1:])]
    for source in (frames, pictures, list(frames)):
        video = load_video(source, raw_fps=3)
        assert video.indices.tolist() == [0, 2, 3, 5, 6, 8] and video.fps == 3
        np.testing.assert_array_equal(video.frames, frames[video.indices])
    every = load_video(frames, sample_fps=2)
    assert every.indices.tolist() == list(range(9)) and every.fps == 2
    assert load_video(frames[:1], sample_fps=2).indices.tolist() == [0, 0]


@pytest.mark.parametrize("rate", [0, -1, "2", True, float("inf"), 10**40, 1e-320], ids=str)
def test_rates_that_are_none_are_refused(rate):
    for name in ("raw_fps", "sample_fps"):
        with pytest.raises(MediaError, match=rf"{name}=.* of a video must be a number from"):
            load_video(moving_square(4), **{name: rate})


def test_frames_of_unknown_rate_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        assert load_video(moving_square(48)).indices.tolist() == [0, 16, 31, 47]
    assert "24 is taken: set raw_fps" in caplog.text


def test_a_video_is_turned_upright():
    content = video_file(moving_square(4))
    upright = load_video(content).frames
    np.testing.assert_array_equal(load_video(turned(content)).frames, np.rot90(upright, -1, axes=(1, 2)))


def test_limits_of_one_video():
    frames = moving_square(20, 320, 320)
    for options, grid in (
        ({"fps": None, "max_pixels": None, "nframes": None, "max_pixel": None}, [2, 20, 20]),
        ({"width": 64, "frames": 9, "video_fps": 30, "num_pixels": 4096}, [2, 20, 20]),
        ({"num_frames": 6}, [3, 20, 20]),
        ({"fps": 12}, [5, 20, 20]),
        ({"max_frames": 4, "fps": 24}, [2, 20, 20]),
        ({"max_frames": 2}, [1, 20, 20]),
        ({"max_pixels": 160 * 160}, [2, 10, 10]),
        ({"total_pixels": 4 * 64 * 64}, [2, 4, 4]),
        ({"min_pixels": 640 * 640}, [2, 40, 40]),
    ):
        settings = VideoSettings().limited(options)
        assert cut_frames(load_video(frames, settings=settings, raw_fps=24).frames)[1].tolist() == grid, options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps=0 of a video must be a number from"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": 2, "num_frames": 4}, "fps=2 and num_frames=4; give one"),
        ({"num_frames": 769}, "num_frames=769 .* from 1 to 768"),
        ({"num_frames": 4.0}, "num_frames=4.0"),
        ({"min_frames": 9, "max_frames": 8}, "min_frames=9 is above max_frames=8"),
        ({"total_pixels": 10**9}, "total_pixels=1000000000"),
        ({"max_pixel": 4096}, "max_pixel of an image or video is not known; write max_pixels, or leave it out"),
        ({"nframes": 4}, "nframes of an image or video is not supported; write num_frames"),
        ({"video_start": 1.0}, "video_start of an image or video is not supported; cut the video"),
    ],
)
def test_limits_that_cannot_be_met_are_refused(options, message):
    with pytest.raises(MediaError, match=message):
        VideoSettings().limited(options)


def test_settings_of_newer_files_are_read():
    settings = VideoSettings.from_json(
        {"size": {"shortest_edge": 1, "longest_edge": 9}, "fps": 1.5, "max_frames": 10, "cap_pixels_per_frame": None}
    )
    assert settings == VideoSettings(min_pixels=1, max_pixels=9, fps=1.5, max_frames=10)
    for wrong in ({"fps": "2"}, {"max_frames": True}, {"cap_pixels_per_frame": 1}, {"do_sample_frames": False}):
        with pytest.raises(ValueError, match=r"video_preprocessor_config\.json: \w+="):
            VideoSettings.from_json(wrong)


def test_a_header_that_counts_a_few_frames_too_many_is_forgiven():
    content = video_file(moving_square(40), form="avi")
    frames, _ = decoded(content)
    at = content.index(b"strh") + 8 + 32
    assert int.from_bytes(content[at : at + 4], "little") == 40
    wrong = content[:at] + (42).to_bytes(4, "little") + content[at + 4 :]
    video = load_video(wrong)
    assert video.indices[-1] == 39
    np.testing.assert_array_equal(video.frames, frames[video.indices])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "a file of 0 bytes cannot be read as a video: Invalid data"),
        (lambda: video_file(moving_square(20), form="avi")[:9000], "is damaged or cut off: [0-9]+ of its 20 frames"),
        (lambda: video_file(moving_square(20))[:-900], "holds no video"),
        (lambda: np.zeros((4, 4, 3), np.uint8), r"shape \(4, 4, 3\) is no video"),
        (list, "a list of 0 is a video without frames"),
        (lambda: np.zeros((0, 4, 4, 3), np.uint8), "is a video without frames"),
        (lambda: [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], "differ in size"),
        (lambda: np.zeros((2, 1, 300, 3), np.uint8), "too oblong"),
        (picture_file, "cannot be read as a video: .* none of the formats ASF, .*, WEBM"),
        (lambda: b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", "cannot be read as a video"),
        (lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot be read as a video"),
    ],
)
def test_what_is_no_video_is_refused(content, message):
    with pytest.raises(MediaError, match=message) as caught:
        load_video(content(), raw_fps=24)
    assert "\n" not in str(caught.value)


def test_sound_alone_is_no_video():
    av = pytest.importorskip("av", reason="videos need PyAV")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16_000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="holds no video"):
        load_video(file.getvalue())


def test_frames_that_are_too_large_are_refused():
    with pytest.raises(MediaError, match="frames of 96x64 pixels, more than max_pixels=6000"):
        load_video(video_file(moving_square(4)), MediaPolicy(max_pixels=6000))


def test_the_decoder_is_asked_for_where_it_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r"pip install -e '\.\[video\]'"):
        load_video(b"video")
