"""Images in training data: where rows may have them, how long documents are, and what a batch holds of them."""

import base64
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qwen35_jax.processing.image import decode_image, image_patches, load_image
from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from qwen35_jax.vision.mrope import mrope_positions
from tests.train.data.pictures import (
    ANSWER,
    IMAGE,
    USER,
    VISION,
    as_png,
    asks,
    batches,
    documents,
    drawn,
    pads,
    part,
    text,
)  # fmt: skip
from train.config.data import DataConfig
from train.data.epochs import count_batches
from train.data.forms import forms_of, read_as
from train.data.measure import measure
from train.data.pipeline import make_batches
from train.data.rows import RowError
from train.data.vision import VisionReader
from train.preview import render_marked


@pytest.fixture
def tokenizer(seeing):
    return seeing


@pytest.fixture
def images(tmp_path):
    """Paths of six images of different sizes beside the data."""
    (tmp_path / "pictures").mkdir()
    for number in range(6):
        drawn(40 + 32 * (number % 3), 64 + 16 * number, number).save(tmp_path / "pictures" / f"{number}.png")
    return [f"pictures/{number}.png" for number in range(6)]


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
    [found] = documents(batches(write_rows([SPELLINGS[name](images[1], content)]), tokenizer), tokenizer)
    want, grid = image_patches(load_image(tmp_path / images[1]), IMAGE)
    ids, trained, positions, patches = found
    rendered = tokenizer.chat_template.render(asks(part(), text("Colour?"))["messages"])
    expanded = rendered.replace("<|image_pad|>", "<|image_pad|>" * (len(want) // 4))
    assert ids.tolist() == tokenizer.encode(expanded)
    assert tokenizer.decode(ids[trained].tolist(), skip_special_tokens=False) == "It is red.<|im_end|>"
    expected, _ = mrope_positions(ids[None], grid[None], **pads(tokenizer))
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
    found = [patches for *_, patches in documents(batches(tmp_path / "a.parquet", tokenizer), tokenizer)]
    want = [image_patches(load_image(each), IMAGE)[0] for each in content]
    assert sorted(map(len, found)) == sorted([len(want[0]) + len(want[1]), len(want[2])])
    np.testing.assert_array_equal(max(found, key=len), np.concatenate(want[:2]))
    np.testing.assert_array_equal(min(found, key=len), want[2])


WRONG = {
    "more places": (asks(part(), part()) | {"images": ["a.png"]}, "vision", r"message 1 \(user\) holds an image, numb"),
    "no column": (asks(part()), "vision", "and the row has no column 'images'"),
    "another key": (asks(part(img="a.png")), "vision", r"a source \(what is under img belongs under 'image'\), and"),
    "another type": (
        asks({"type": "picture", "path": "a.png"}),
        "missing_key",
        "type 'picture' .* types are text, .*, image",
    ),
    "no type": (asks({"picture": "a.png"}), "missing_key", "that can be read; its keys: picture"),
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


def test_a_word_for_an_image_that_the_row_does_not_hold_is_no_text(write_rows, tokenizer, images):
    shown = {"prompt": "<image>Colour?", "completion": "It is red."}
    rows = [shown | {"img": images[0]}, shown | {"image": None}, shown | {"image": images[0]}]
    path = write_rows(rows)
    wanted = (
        r"line 1: message 1 \(user\) holds <image>, but the row holds no image in a column 'images' or 'image' "
        r"\(its other keys: img\); .* \"images\": \[\]; mend the row, or leave .* --data\.bad-rows drop"
    )
    with pytest.raises(ValueError, match=wanted):
        batches(path, tokenizer)
    iterator = batches(path, tokenizer, bad_rows="drop")
    assert len(list(documents(iterator, tokenizer))) == 1
    assert iterator.report()["dropped"] == {"no_media": 2}


def test_the_word_image_is_text_where_the_row_or_the_run_has_no_images(write_rows, tokenizer):
    asked = {"prompt": "What is an <image>?", "completion": "A word of SVG."}
    for row in (asked | {"images": []}, {"prompt": "What is 1?", "completion": "An <image>."}):
        [(ids, *_)] = documents(batches(write_rows([row]), tokenizer), tokenizer)
        assert "<image>" in tokenizer.decode(ids.tolist())
    make_batches(DataConfig(write_rows([asked])), tokenizer)


def test_rows_with_images_name_the_option(write_rows, tokenizer, images):
    for row in (asks(part(image=images[0])), asks(text("<image>")) | {"image": images[0]}):
        with pytest.raises(ValueError, match=r"data\.jsonl line 1: the row holds images .* --data\.vision\.max-pixels"):
            make_batches(DataConfig(write_rows([row])), tokenizer)


BROKEN = {
    "missing": (asks(part(image="no.png")), r"image 1 of the row: there is no file 'no\.png'"),
    "no image": (asks(part(image="data:image/png;base64,AAAA")), "image 1 of the row: .* cannot be read"),
    "address": (asks(part(image="https://example.com/a.png")), r"a data URI, or give --data\.vision\.allow-urls"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_images_that_cannot_be_read_stop_the_run_or_are_left_out(name, write_rows, tokenizer, images):
    row, message = BROKEN[name]
    path = write_rows([row, asks(part(image=images[0]), text("Colour?"))])
    with pytest.raises(ValueError, match=rf"data\.jsonl line 1: .*{message}"):
        list(batches(path, tokenizer))
    iterator = batches(path, tokenizer, bad_rows="drop")
    assert len(list(documents(iterator, tokenizer))) == 1
    assert iterator.report()["dropped"] == {"media": 1}


def test_too_many_patches_are_too_long(write_rows, tokenizer, images):
    path = write_rows([asks(*[part(image=images[5])] * 11), asks(part(image=images[0]), text("Colour?"))])
    iterator = batches(path, tokenizer, sequence_length=400)
    assert len(list(documents(iterator, tokenizer))) == 1
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
    assert len(list(documents(found, tokenizer))) == 30
    assert {batch["pixels"].shape for batch in found} == {(2, 256, 1536)}
    assert max((batch["frames"] > 0).sum(1).max() for batch in found) > 128
    alone = {tuple(ids): patches for ids, *_, patches in documents(found, tokenizer)}
    for ids, *_, patches in documents(batches(path, tokenizer, open_sequences=1), tokenizer):
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
    monkeypatch.setattr("train.data.vision.decode_image", None)
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
    found = list(documents(batches(write_rows([asks(part(image=name)) for name in names]), tokenizer), tokenizer))
    assert [len(patches) for *_, patches in found] == [24] * 3


def test_text_beside_images_counts_its_positions(write_rows, tokenizer, images):
    path = write_rows([{"text": "Plain words. " * 30}, asks(part(image=images[0]))])
    for ids, _, positions, patches in documents(batches(path, tokenizer), tokenizer):
        if not len(patches):
            np.testing.assert_array_equal(positions, np.arange(len(ids))[:, None].repeat(3, 1))


def with_a_picture(row):
    return {"messages": [{"role": "user", "content": "<image>Colour?"}, row["answer"]], "images": [drawn(64, 96)]}


def test_a_function_may_return_images_of_pillow(write_rows, tokenizer):
    path = write_rows([{"answer": ANSWER}])
    [(*_, found)] = documents(batches(path, tokenizer, convert=with_a_picture), tokenizer)
    np.testing.assert_array_equal(found, image_patches(np.asarray(drawn(64, 96)), IMAGE)[0])


def test_a_preview_counts_the_tokens_of_an_image(write_rows, tokenizer, images):
    path = write_rows([asks(part(image=images[0]), text("Colour?"))])
    [[example]] = batches(path, tokenizer).corpus.load([0])
    assert "<|vision_start|><|image_pad|> x 2<|vision_end|>Colour?" in render_marked(example, tokenizer, ("[", "]"))


def test_the_folder_of_images_may_be_another(write_rows, tokenizer, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    drawn(64, 96).save(tmp_path / "elsewhere" / "a.png")
    path = write_rows([asks(part(image="a.png"), text("Colour?"))])
    vision = replace(VISION, folder=str(tmp_path / "elsewhere"))
    assert len(list(documents(batches(path, tokenizer, vision=vision), tokenizer))) == 1


def test_images_of_the_next_batches_are_decoded_meanwhile(write_rows, tokenizer, images, monkeypatch):
    decoded = []

    def counted(opened, name, policy):
        decoded.append(name)
        return decode_image(opened, name, policy)

    monkeypatch.setattr("train.data.vision.decode_image", counted)
    monkeypatch.setattr("train.data.shards._MAX_DOCUMENTS_AHEAD", 100)
    iterator = batches(write_rows(mixed_rows(images)), tokenizer)
    batch = next(iterator)
    iterator.corpus.vision.executor.shutdown()
    # Two sequences of 160 tokens hold fewer images than are decoded by the end of what was begun.
    assert len(decoded) > batch["frames"].max(1).sum()


def test_processes_that_share_the_data_make_the_same_batches(write_rows, tokenizer, images):
    path = write_rows(mixed_rows(images))
    whole = next(batches(path, tokenizer, shards=2))
    reader = VisionReader(VISION, ImageSettings(), VideoSettings(), tokenizer)
    config = batches(path, tokenizer, shards=2).corpus.config
    halves = [next(make_batches(config, tokenizer, range(n, n + 1), vision=reader)) for n in range(2)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), array, err_msg=name)
