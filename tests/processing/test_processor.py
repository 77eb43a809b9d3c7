"""Conversations with images and videos: the order of things, the pads, and what does not fit."""

import base64
import io
import json
import logging

import numpy as np
import pytest
from PIL import Image

from qwen35_jax.processing import ChatTemplateError, MediaError, MediaPolicy, Processor, Tokenizer
from qwen35_jax.processing.image import image_patches, normalize
from qwen35_jax.processing.processor import Media, VisionItem, join_pixels, media_of
from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from tests.conftest import PUBLISHED
from tests.processing.conversations import user
from tests.processing.videos import moving_square

SMALL = ImageSettings(min_pixels=4096, max_pixels=16_384)


@pytest.fixture(scope="module")
def folder(tiny_tokenizer_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    for file in tiny_tokenizer_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_bytes((PUBLISHED / "chat_template_2b_and_below.jinja").read_bytes())
    return folder


@pytest.fixture(scope="module")
def processor(folder):
    return Processor(Tokenizer.from_pretrained(folder), SMALL)


def picture(seed=0, height=70, width=100):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def image(source, **options):
    return {"type": "image", "image": source, **options}


def text(processor, inputs):
    return processor.tokenizer.decode(inputs["input_ids"][0].tolist(), skip_special_tokens=False)


def pads(kind, count):
    return f"<|vision_start|>{f'<|{kind}_pad|>' * count}<|vision_end|>"


def test_images_and_videos_keep_their_order(processor):
    first, second = picture(1), picture(2, 128, 32)
    video = {"type": "video", "video": moving_square(9), "raw_fps": 3}
    a, b = ({"type": "text", "text": text} for text in ("a ", " b "))
    messages = [user([a, image(first), b, video]), user([image(second)])]
    inputs = processor(messages)
    times = "".join(f"<{seconds} seconds>{pads('video', 6)}" for seconds in (0.3, 1.3, 2.3))
    want = f"<|im_start|>user\na {pads('image', 6)} b {times}<|im_end|>\n"
    want += f"<|im_start|>user\n{pads('image', 4)}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert text(processor, inputs) == want
    assert inputs["grids"].tolist() == [[1, 4, 6], [3, 4, 6], [1, 8, 2]]
    assert inputs["pixels"].shape == (24 + 72 + 16, 1536) and inputs["pixels"].dtype == np.float32
    for source, rows in ((first, slice(0, 24)), (second, slice(96, None))):
        np.testing.assert_array_equal(inputs["pixels"][rows], normalize(image_patches(np.asarray(source), SMALL)[0]))
    assert inputs["input_ids"].dtype == inputs["position_ids"].dtype == inputs["grids"].dtype == np.int32
    assert inputs["position_ids"].shape == (3, 1, inputs["input_ids"].shape[1])
    start = int(np.argmax(inputs["input_ids"][0] == processor.tokenizer.token_id("<|image_pad|>")))
    got = inputs["position_ids"][:, 0, start : start + 7] - start
    assert got.tolist() == [[0, 0, 0, 0, 0, 0, 3], [0, 0, 0, 1, 1, 1, 3], [0, 1, 2, 0, 1, 2, 3]]


def test_text_alone_has_no_pixels(processor):
    inputs = processor([user("12")], add_generation_prompt=False)
    assert set(inputs) == {"input_ids", "position_ids"}
    assert text(processor, inputs) == "<|im_start|>user\n12<|im_end|>\n"
    assert inputs["position_ids"][:, 0].tolist() == [list(range(inputs["input_ids"].shape[1]))] * 3


def test_images_can_be_numbered(processor):
    messages = [user([image(picture()), image(picture())])]
    assert f"Picture 1: {pads('image', 6)}Picture 2: {pads('image', 6)}" in text(
        processor, processor(messages, add_vision_id=True)
    )
    assert "Picture" not in text(processor, processor(messages))


def test_every_way_to_write_an_item(processor, tmp_path):
    picture().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    path = str(tmp_path / "a.png")
    items = [
        image(picture()),
        image(np.asarray(picture())),
        image(content),
        image({"bytes": content, "path": None}),
        image({"bytes": None, "path": path}),
        image(path),
        {"type": "image", "url": path},
        {"type": "image", "path": path},
        {"image": uri},
        {"type": "image_url", "image_url": {"url": uri, "detail": "high"}},
        {"type": "image_url", "image_url": uri, "text": None},
    ]
    inputs = processor([user(items)])
    assert inputs["grids"].tolist() == [[1, 4, 6]] * len(items)
    pixels = inputs["pixels"].reshape(len(items), 24, -1)
    assert (pixels == pixels[0]).all()


def test_tables_give_every_item_every_key(processor):
    nothing = {"image": None, "video": None, "text": None, "image_url": None, "video_url": None}
    items = [nothing | {"type": "text", "text": "12"}, nothing | image(picture())]
    assert processor([user(items)])["grids"].tolist() == [[1, 4, 6]]
    video = nothing | {"type": "video_url", "video_url": {"url": moving_square(4)}, "raw_fps": 2}
    assert processor([user([video])])["grids"].tolist() == [[2, 4, 6]]
    assert media_of([user("text"), {"role": "assistant", "content": None}, user([items[0]])]) == []


def test_items_may_lower_the_limits(processor):
    inputs = processor([user([image(picture(), max_pixels=4096), image(picture())])])
    assert inputs["grids"].tolist() == [[1, 2, 4], [1, 4, 6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image"}], "an item of the type image names no source"),
        ([{"type": "video", "video": None}], "an item of the type video names no source"),
        ("a <|image_pad|>", "has 1 images and 0 videos in its text, but 0 images and 0 videos were given"),
        ([image(picture()), {"type": "text", "text": "<|video_pad|>"}], "1 images and 1 videos .* but 1 images and 0"),
        ([image(picture()), image("gone.png")], "image or video 2: there is no file 'gone.png'"),
        ([image("https://example.org/a.png")], "image or video 1: .* is not fetched: addresses are not allowed"),
        ([image(b"text")], "image or video 1: a file of 4 bytes cannot be read as an image"),
        ([image(picture(0, 1, 201))], "image or video 1: 201x1 pixels are too oblong"),
        ([image(picture(), resized_height=64)], "image or video 1: resized_height .* is not supported"),
        ([{"type": "video", "video": "gone.mp4"}], r"image or video 1: there is no file 'gone\.mp4'"),
        ([image([picture()])], "image or video 1: a list of 1 is no image or video"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(processor, content, message):
    with pytest.raises(MediaError, match=message) as caught:
        processor([user(content)])
    assert "\n" not in str(caught.value)


def test_placeholders_and_items_must_be_the_same(processor):
    item = processor.item(Media("image", picture(), {}))
    assert processor.expand("<|image_pad|>", [item]) == "<|image_pad|>" * 6
    for written, items in (("", [item]), ("<|image_pad|><|image_pad|>", [item]), ("<|video_pad|>", [item])):
        with pytest.raises(MediaError, match="give one for each"):
            processor.expand(written, items)


def test_a_bare_video_pad_gets_its_marks(processor):
    video = processor.item(Media("video", moving_square(2), {"raw_fps": 2}))
    assert processor.expand("a<|video_pad|>", [video]) == f"a<0.2 seconds>{pads('video', 6)}"


def test_the_policy_counts(folder, tmp_path):
    picture().save(tmp_path / "a.png")
    tokenizer = Tokenizer.from_pretrained(folder)
    messages = [user([image("a.png")])]
    assert "pixels" in Processor(tokenizer, SMALL, policy=MediaPolicy(root=tmp_path))(messages)
    with pytest.raises(MediaError, match="files are not allowed"):
        Processor(tokenizer, SMALL, policy=MediaPolicy(allow_files=False))(messages)


def test_sizes_come_from_the_files_of_the_folder(folder, tmp_path, caplog):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with caplog.at_level(logging.WARNING):
        found = Processor.from_pretrained(tmp_path)
    assert (found.image, found.video) == (ImageSettings(), VideoSettings())
    assert "no preprocessor_config.json; the sizes of the published" in caplog.text
    image_file, video_file = ({"size": {"shortest_edge": n, "longest_edge": 9 * n}} for n in (100, 200))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(image_file))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video_file | {"fps": 1}))
    caplog.clear()
    found = Processor.from_pretrained(tmp_path)
    assert found.image == ImageSettings(min_pixels=100, max_pixels=900) and not caplog.text
    assert found.video == VideoSettings(min_pixels=200, max_pixels=1800, fps=1)
    newer = {"image_processor": {"size": {"shortest_edge": 300, "longest_edge": 400}}, "video_processor": {"fps": 3}}
    (tmp_path / "processor_config.json").write_text(json.dumps(newer))
    found = Processor.from_pretrained(tmp_path)
    assert found.image == ImageSettings(min_pixels=300, max_pixels=400) and found.video == VideoSettings(fps=3)
    for settings in (found.image, found.video):
        assert type(settings).from_json(settings.to_json()) == settings
    newer["video_processor"]["patch_size"] = 14
    (tmp_path / "processor_config.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match="patch_size is 16 for images and 14 for videos"):
        Processor.from_pretrained(tmp_path)


def test_one_image_object_may_stand_twice(processor):
    file = io.BytesIO()
    picture().save(file, "PNG")
    lazy = Image.open(file)
    inputs = processor([user([image(lazy)] * 8)])
    pixels = inputs["pixels"].reshape(8, 24, -1)
    assert (pixels == pixels[0]).all()


def test_the_items_found_are_those_that_the_template_writes(processor):
    rng = np.random.default_rng(0)
    keys, seen = ("type", "image", "image_url", "video", "video_url", "text", "url"), set()
    types = ["image", "image_url", "video", "video_url", "text", None]
    for _ in range(3000):
        chosen = [key for key in keys if rng.random() < 0.35]
        item = {key: rng.choice([None, "x"]) if key != "type" else rng.choice(types) for key in chosen}
        role = str(rng.choice(["user", "assistant", "tool"]))
        messages = [user("?"), {"role": role, "content": [item, {"type": "text", "text": "a"}]}]
        try:
            rendered = processor.tokenizer.chat_template.render(messages)
            found = [media.kind for media in media_of(messages)]
        except (ChatTemplateError, MediaError) as err:
            seen.add(type(err))
            continue
        assert [kind for kind in ("image", "video") if f"<|{kind}_pad|>" in rendered] == found
        seen.add(tuple(found))
    assert seen == {ChatTemplateError, MediaError, (), ("image",), ("video",)}


def test_many_pixels_are_normalised_as_few(processor):
    large = [
        VisionItem("image", np.full((patches, 1536), patches % 256, np.uint8), np.zeros(3)) for patches in (300, 700)
    ]
    joined = join_pixels(large)
    assert joined.nbytes > 2**22 and joined.flags.writeable
    np.testing.assert_array_equal(joined, normalize(np.concatenate([item.patches for item in large])))
