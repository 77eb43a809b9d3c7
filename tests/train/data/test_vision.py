"""Images in training data: where rows may have them, how long documents are, and what a batch holds of them."""

import base64
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.processing import Tokenizer
from qwen35_jax.processing.image import image_patches, load_image
from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from qwen35_jax.vision.mrope import mrope_positions
from tests.processing.conftest import TEXTS
from tests.train.data.pictures import as_png, drawn, show_images
from train.config.data import DataConfig
from train.config.vision import VisionDataConfig
from train.data.epochs import count_batches
from train.data.forms import forms_of, read_as
from train.data.measure import measure
from train.data.pipeline import make_batches
from train.data.rows import RowError
from train.data.vision import VisionReader

VISION = VisionDataConfig(
    max_pixels=96 * 96, min_pixels=32 * 32, video_max_pixels=2 * 96 * 96, patches_per_sequence=256, num_threads=2
)
IMAGE = ImageSettings(min_pixels=32 * 32, max_pixels=96 * 96)
USER, ANSWER = {"role": "user"}, {"role": "assistant", "content": "It is red."}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = build_tiny_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=400)
    return Tokenizer.from_pretrained(show_images(folder))


@pytest.fixture
def images(tmp_path):
    """Paths of six images of different sizes beside the data."""
    (tmp_path / "pictures").mkdir()
    for number in range(6):
        drawn(40 + 32 * (number % 3), 64 + 16 * number, number).save(tmp_path / "pictures" / f"{number}.png")
    return [f"pictures/{number}.png" for number in range(6)]


def reader(tokenizer, settings=VISION):
    return VisionReader(settings, ImageSettings(), VideoSettings(), tokenizer)


def batches(path, tokenizer, *, vision=VISION, sequences=range(2), **settings):
    config = {"sequence_length": 160, "sequences_per_batch": 2, "open_sequences": 3, "num_threads": 2, "epochs": 1}
    return make_batches(
        DataConfig(str(path), vision=vision, **{**config, **settings}), tokenizer, None, None, reader(tokenizer, vision)
    )


def part(**fields):
    return {"type": "image", **fields}


def text(words):
    return {"type": "text", "text": words}


def asks(*content):
    return {"messages": [USER | {"content": list(content)}, ANSWER]}


def documents(found):
    """Yields what each document of some batches consists of: ids, trained, positions and its patches."""
    for batch in found:
        for row, segments in enumerate(batch["segment_ids"]):
            start = 0
            for segment in range(1, segments.max() + 1):
                mine = segments == segment
                ids = batch["input_ids"][row, mine]
                pads = int(np.isin(ids, [PADS["image"], PADS["video"]]).sum())
                patches = batch["pixels"][row, start : start + 4 * pads]
                start += 4 * pads
                yield ids, batch["trained"][row, mine], batch["positions"][row, mine], patches
            assert not batch["pixels"][row, start:].any() and not batch["frames"][row, start:].any()
            assert (batch["frames"][row, :start] > 0).all()


PADS = {}


@pytest.fixture(autouse=True)
def pads(tokenizer):
    PADS.update({kind: tokenizer.token_id(f"<|{kind}_pad|>") for kind in ("image", "video")})


SPELLINGS = {
    "qwen": lambda path, content: asks(part(image=path), text("Colour?")),
    "image_url": lambda path, content: asks({"type": "image_url", "image_url": {"url": path}}, text("Colour?")),
    "url as text": lambda path, content: asks({"type": "image_url", "image_url": path}, text("Colour?")),
    "path": lambda path, content: asks(part(path=path), text("Colour?")),
    "data uri": lambda path, content: asks(
        part(image=f"data:image/png;base64,{base64.b64encode(content).decode()}"), text("Colour?")
    ),
    "column": lambda path, content: asks(part(), text("Colour?")) | {"images": [path]},
    "column of one": lambda path, content: asks(part(index=0), text("Colour?")) | {"image": path},
    "word": lambda path, content: {
        "conversations": [{"from": "human", "value": "<image>Colour?"}, {"from": "gpt", "value": "It is red."}],
        "image": path,
    },
    "prompt": lambda path, content: {"prompt": "<image>Colour?", "completion": "It is red.", "images": [path]},
    "alpaca": lambda path, content: {"instruction": "<image>Colour?", "output": "It is red.", "images": [path]},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_gives_the_same_document(name, images, write_rows, tokenizer, tmp_path):
    content = (tmp_path / images[1]).read_bytes()
    [found] = documents(batches(write_rows([SPELLINGS[name](images[1], content)]), tokenizer))
    want, grid = image_patches(load_image(tmp_path / images[1]), IMAGE)
    ids, trained, positions, patches = found
    rendered = tokenizer.chat_template.render(asks(part(), text("Colour?"))["messages"])
    expanded = rendered.replace("<|image_pad|>", "<|image_pad|>" * (len(want) // 4))
    assert ids.tolist() == tokenizer.encode(expanded)
    assert tokenizer.decode(ids[trained].tolist(), skip_special_tokens=False) == "It is red.<|im_end|>"
    expected, _ = mrope_positions(ids[None], grid[None], image_token=PADS["image"], video_token=PADS["video"])
    np.testing.assert_array_equal(positions, expected[:, 0].T)
    np.testing.assert_array_equal(patches, want)


def test_columns_of_files_as_data_sets_of_the_hub_store_them(tmp_path, tokenizer):
    content = [as_png(drawn(64, 96, seed)) for seed in range(3)]
    rows = [
        {
            "messages": [USER | {"content": "<image> and <image>: which?"}, ANSWER],
            "images": [{"bytes": content[0], "path": "a.png"}, {"bytes": content[1], "path": None}],
        },
        {"messages": [USER | {"content": "<image>Colour?"}, ANSWER], "images": [{"bytes": content[2], "path": None}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [patches for *_, patches in documents(batches(tmp_path / "a.parquet", tokenizer))]
    want = [image_patches(load_image(each), IMAGE)[0] for each in content]
    assert sorted(map(len, found)) == sorted([len(want[0]) + len(want[1]), len(want[2])])
    np.testing.assert_array_equal(max(found, key=len), np.concatenate(want[:2]))
    np.testing.assert_array_equal(min(found, key=len), want[2])


WRONG = {
    "more places": (asks(part(), part()) | {"images": ["a.png"]}, "vision", r"message 1 \(user\) holds an image, numb"),
    "no column": (asks(part()), "vision", "and the row has no column 'images'"),
    "fewer places": (
        asks(part(), text("a")) | {"images": ["a.png", "b.png"]},
        "vision",
        "holds 2 images, but its mess",
    ),
    "no place": (asks(text("a")) | {"image": "a.png"}, "vision", "write <image> in the text where each belongs"),
    "two columns": (asks(part()) | {"images": ["a.png"], "image": "a.png"}, "ambiguous", "'images' and 'image'"),
    "another order": (asks(part(index=1), part(index=0)) | {"images": ["a", "b"]}, "vision", "asks for number 1"),
    "both kinds": (asks({"image": "a", "video": "b"}), "ambiguous", "an image and a video"),
    "number": (asks(part(image=3)), "wrong_type", "whose source is the number 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_whose_places_and_images_do_not_agree(name):
    row, reason, message = WRONG[name]
    with pytest.raises(RowError, match=message) as err:
        read_as(forms_of(row)[0], row)
    assert err.value.reason == reason


def test_the_word_image_is_text_without_a_column():
    [message, _] = read_as("messages", {"messages": [USER | {"content": "What is <image>?"}, ANSWER]}).messages
    assert message["content"] == "What is <image>?"


def test_rows_with_images_name_the_option(write_rows, tokenizer, images):
    for row in (asks(part(image=images[0])), asks(text("<image>")) | {"image": images[0]}):
        with pytest.raises(ValueError, match=r"data\.jsonl line 1: the row holds images .* --data\.vision\.max-pixels"):
            make_batches(DataConfig(write_rows([row])), tokenizer)


BROKEN = {
    "missing": (asks(part(image="no.png")), r"image 1 of the row: there is no file 'no\.png'"),
    "no image": (asks(part(image="data:image/png;base64,AAAA")), "image 1 of the row: .* cannot be read"),
    "address": (asks(part(image="https://example.com/a.png")), "addresses are not allowed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_images_that_cannot_be_read_stop_the_run_or_are_left_out(name, write_rows, tokenizer, images):
    row, message = BROKEN[name]
    path = write_rows([row, asks(part(image=images[0]), text("Colour?"))])
    with pytest.raises(ValueError, match=rf"data\.jsonl line 1: .*{message}"):
        list(batches(path, tokenizer))
    iterator = batches(path, tokenizer, bad_rows="drop")
    assert len(list(documents(iterator))) == 1
    assert iterator.report()["dropped"] == {"media": 1}


def test_an_image_that_is_cut_off_is_found_when_it_is_decoded(write_rows, tokenizer, images, tmp_path):
    whole = as_png(Image.effect_noise((96, 96), 50).convert("RGB"))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    path = write_rows([asks(part(image="cut.png")), asks(part(image=images[0]), text("Colour?"))])
    with pytest.raises(ValueError, match=r"data\.jsonl line 1: image 1 of the row: .*cut\.png"):
        list(batches(path, tokenizer))
    assert len(list(documents(batches(path, tokenizer, bad_rows="drop")))) == 1


def test_too_many_patches_are_too_long(write_rows, tokenizer, images):
    path = write_rows([asks(*[part(image=images[5])] * 11), asks(part(image=images[0]), text("Colour?"))])
    iterator = batches(path, tokenizer, sequence_length=400)
    assert len(list(documents(iterator))) == 1
    assert iterator.report()["dropped"] == {"too_many_patches": 1}
    with pytest.raises(ValueError, match=r"line 1: 264 patches, more than .*=256; raise --data.vision.patches-per-seq"):
        list(batches(path, tokenizer, sequence_length=400, long_rows="error"))


def mixed_rows(images):
    """Returns conversations of none to three images of all sizes."""
    rows = []
    for number in range(30):
        shown = [images[(number + place) % 6] for place in range(number % 4)]
        rows.append(asks(*[part(image=path) for path in shown], text(f"Question {number}?" + " why" * (number % 7))))
    return rows


def assert_equal(got, want):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.keys() == w.keys()
        for name in w:
            np.testing.assert_array_equal(g[name], w[name], err_msg=name)


def test_every_document_once_within_both_budgets(write_rows, tokenizer, images):
    path = write_rows(mixed_rows(images))
    # The patches are what fills a sequence here.
    found = list(batches(path, tokenizer, vision=replace(VISION, patches_per_sequence=256), sequence_length=400))
    assert len(list(documents(found))) == 30
    assert {batch["pixels"].shape for batch in found} == {(2, 256, 1536)}
    assert max((batch["frames"] > 0).sum(1).max() for batch in found) > 128
    alone = {tuple(ids): patches for ids, *_, patches in documents(found)}
    for ids, *_, patches in documents(batches(path, tokenizer, open_sequences=1)):
        np.testing.assert_array_equal(alone[tuple(ids)], patches)


@pytest.mark.parametrize("taken", [1, 3])
def test_a_position_continues_with_the_same_batches(taken, write_rows, tokenizer, images):
    path = write_rows(mixed_rows(images))
    whole = batches(path, tokenizer, epochs=None)
    expected = [next(whole) for _ in range(taken + 4)]
    first = batches(path, tokenizer, epochs=None)
    for _ in range(taken):
        next(first)
    second = batches(path, tokenizer, epochs=None)
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert_equal([next(second) for _ in range(4)], expected[taken:])


def test_how_much_is_decoded_ahead_changes_nothing(write_rows, tokenizer, images, monkeypatch):
    path = write_rows(mixed_rows(images))
    expected = list(batches(path, tokenizer))
    monkeypatch.setattr("train.data.shards._BATCHES_DECODED", 0)
    assert_equal(list(batches(path, tokenizer)), expected)


def test_the_position_belongs_to_the_size_of_images(write_rows, tokenizer, images):
    path = write_rows(mixed_rows(images))
    state = batches(path, tokenizer).get_state()
    other = batches(path, tokenizer, vision=replace(VISION, max_pixels=64 * 64))
    with pytest.raises(ValueError, match="the saved position belongs to other data: vision was"):
        other.set_state(state)


@pytest.mark.parametrize("patches", [256, 1024])
def test_epochs_are_counted_without_decoding(patches, write_rows, tokenizer, images, monkeypatch):
    path = write_rows(mixed_rows(images))
    iterator = batches(path, tokenizer, vision=replace(VISION, patches_per_sequence=patches), sequence_length=400)
    monkeypatch.setattr("train.data.vision.load_image", None)
    found = measure(iterator.corpus, whole=True)
    counted = count_batches(iterator.corpus, found)
    monkeypatch.undo()
    assert counted == len(list(iterator))


def test_sizes_are_read_from_headers(tmp_path, write_rows, tokenizer):
    # EXIF orientation 6: the picture is shown turned by a quarter.
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn(64, 96).save(tmp_path / "turned.jpg", exif=exif)
    Image.effect_noise((64, 96), 50).save(tmp_path / "grey.gif")
    drawn(64, 96).convert("RGBA").save(tmp_path / "clear.webp")
    names = ("turned.jpg", "grey.gif", "clear.webp")
    found = list(documents(batches(write_rows([asks(part(image=name)) for name in names]), tokenizer)))
    assert [len(patches) for *_, patches in found] == [24] * 3


def test_text_beside_images_counts_its_positions(write_rows, tokenizer, images):
    path = write_rows([{"text": "Plain words. " * 30}, asks(part(image=images[0]))])
    for ids, _, positions, patches in documents(batches(path, tokenizer)):
        if not len(patches):
            np.testing.assert_array_equal(positions, np.arange(len(ids))[:, None].repeat(3, 1))
