"""Small copies of what a question shows."""

import base64
import importlib.util
import io

import pytest
from PIL import Image

from eval.report.thumbnails import of_messages
from eval.tasks.media import StoredImage, image_parts, user_parts
from eval.videos import length_of


def stored(size, color="red", mode="RGB", kind="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, kind)
    return StoredImage("here", buffer.getvalue)


def shown(*images, room=100_000):
    return of_messages(user_parts(*image_parts(images, {}), "what?"), room)


def opened(thumbnail):
    return Image.open(io.BytesIO(base64.b64decode(thumbnail.source.partition(",")[2])))


@pytest.mark.parametrize(
    ("size", "small"),
    [((1000, 500), (320, 160)), ((10, 40), (10, 40)), ((5, 2000), (1, 320)), ((320, 320), (320, 320))],
)
def test_a_copy_is_at_most_320_pixels_long(size, small):
    (found,) = shown(stored(size))
    assert (found.width, found.height) == small == opened(found).size
    assert found.source.startswith("data:image/jpeg;base64,") and found.name == "image 1"


def test_any_mode_of_color_is_shown():
    images = [stored((8, 8), mode=mode, color=0) for mode in ("P", "L", "I;16", "RGBA", "1")]
    assert [found.width for found in shown(*images, stored((8, 8), mode="CMYK", color=0, kind="TIFF"))] == [8] * 6


def test_an_image_is_shown_as_the_model_sees_it():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    turned, exif = Image.new("RGB", (40, 20), "red"), Image.Exif()
    exif[0x0112] = 6
    buffers = [io.BytesIO(), io.BytesIO()]
    clear.save(buffers[0], "PNG")
    turned.save(buffers[1], "JPEG", exif=exif)
    found = [opened(each) for each in shown(*(StoredImage("here", each.getvalue) for each in buffers))]
    assert found[0].getpixel((4, 4)) == (255, 255, 255) and found[1].size == (20, 40)


def test_copies_become_smaller_where_there_is_less_room():
    noise = Image.effect_noise((800, 800), 80)
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    image = StoredImage("here", buffer.getvalue)
    sides = [shown(image, room=room)[0].width for room in (100_000, 20_000, 9_000)]
    assert sides == sorted(sides, reverse=True) and sides[0] > sides[-1] > 0
    (none,) = shown(image, room=100)
    assert none.source == "" and none.name == "image 1 is left out, for the page has no room"


def test_a_file_that_is_no_image_is_named_and_a_missing_one_is_not_shown(tmp_path):
    (found,) = shown(StoredImage("here", lambda: b"no image"))
    assert found.source == "" and found.name.startswith("image 1 cannot be shown")
    missing = StoredImage("here", lambda: b"", path=tmp_path / "none.png")
    assert shown(missing) == () == of_messages([{"role": "user", "content": "text"}], 100)


def test_a_video_without_its_package_or_its_file(tmp_path):
    path = tmp_path / "a.mp4"
    messages = user_parts({"type": "video", "video": str(path)}, "what?")
    assert of_messages(messages, 10_000) == ()
    path.write_bytes(b"no video")
    (found,) = of_messages(messages, 10_000)
    assert found.source == "" and found.name.startswith("a.mp4 cannot be shown: ")


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV (extra video) is not installed")
def test_a_video_is_shown_by_some_frames(tmp_path):
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.gop_size = 64, 48, 5
        for number in range(40):
            image = Image.new("RGB", (64, 48), (6 * number, 0, 0))
            for packet in stream.encode(av.VideoFrame.from_image(image)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    assert length_of(path) == (40, 10.0)
    found = of_messages(user_parts({"type": "video", "video": str(path)}, "what?"), 40_000)
    reds = [opened(each).getpixel((30, 20))[0] for each in found]
    assert len(found) == 4 and reds == sorted(reds) and reds[-1] > reds[0] + 100
    assert found[0].name.startswith("a.mp4, ")
