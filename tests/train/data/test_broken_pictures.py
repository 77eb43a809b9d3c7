"""Images whose headers are in order and that cannot be decoded, and files that are gone when a run goes on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.data.pictures import VISION, as_png, asks, batches, documents, drawn, part, text
from train.data.epochs import count_batches
from train.data.measure import measure
from train.data.validation import read_validation

CUT = r"data\.jsonl line 3: image 2 of the row: 'cut\.png' cannot be read as an image: .* truncated"


@pytest.fixture
def tokenizer(seeing):
    return seeing


@pytest.fixture
def path(tmp_path, write_rows):
    """Twenty rows with one image each; the third has a second one, of which only the first half is there."""
    whole = as_png(Image.effect_noise((96, 96), 50).convert("RGB"))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for number in range(20):
        drawn(64, 96, number).save(tmp_path / f"{number}.png")
    rows = [asks(part(image=f"{number}.png"), text("Colour?")) for number in range(20)]
    rows[2] = asks(part(image="2.png"), part(image="cut.png"), text("Colours?"))
    return write_rows(rows)


def dropping(path, tokenizer, **settings):
    return batches(path, tokenizer, bad_rows="drop", **settings)


def test_the_run_stops_where_it_is_decoded(path, tokenizer):
    with pytest.raises(ValueError, match=f"{CUT}.*; mend the row, or leave such rows out with --data.bad-rows drop"):
        list(batches(path, tokenizer))


def test_a_row_that_is_left_out_keeps_its_place(path, tokenizer):
    """... with black pictures, and trains nothing, so that an epoch has the batches that were counted."""
    iterator = dropping(path, tokenizer)
    counted = count_batches(iterator.corpus, measure(iterator.corpus, whole=True))
    found = list(iterator)
    assert len(found) == counted
    assert iterator.report()["dropped"] == {"media": 1}
    shown = list(documents(found, tokenizer))
    assert len(shown) == 20
    [(_, _, positions, patches)] = [each for each in shown if not each[1].any()]
    assert len(patches) == 24 + 36 and not patches.any() and positions.any()
    assert iterator.report()["trained_tokens"] == sum(int(batch["trained"].sum()) for batch in found)


@pytest.mark.parametrize("taken", range(3))
def test_a_position_continues_with_the_same_batches(taken, path, tokenizer):
    first, second = dropping(path, tokenizer), dropping(path, tokenizer)
    for _ in range(taken):
        next(first)
    second.set_state(json.loads(json.dumps(first.get_state())))
    rest = [list(iterator) for iterator in (first, second)]
    assert len(rest[0]) == len(rest[1]) > 0
    for one, other in zip(*rest, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert first.report() == second.report()


def test_a_run_that_stopped_goes_on_with_the_other_policy(path, tokenizer):
    stopped, state = batches(path, tokenizer), None
    with pytest.raises(ValueError, match=CUT):
        while True:
            state = stopped.get_state()
            next(stopped)
    resumed = dropping(path, tokenizer)
    resumed.set_state(state)
    list(resumed)
    assert resumed.report() == {**resumed.report(), "documents": 20, "dropped": {"media": 1}}


def test_nothing_that_can_be_decoded(path, tokenizer, tmp_path, write_rows):
    broken = write_rows([asks(part(image="cut.png"))] * 4, "broken.jsonl")
    with pytest.raises(ValueError, match=r"no row of data.path=.* left out: \{'media': 4\}"):
        list(dropping(broken, tokenizer))


def test_validation_data_follow_the_same_policy(path, tokenizer, caplog):
    for policy in ("drop", "error"):
        training = batches(path, tokenizer, bad_rows=policy, eval_path=path).corpus
        held = read_validation(training.config, tokenizer, range(2), training)
        if policy == "drop":
            for _ in range(2):
                found = list(documents(held.batches, tokenizer))
                assert len(found) == 20 and sum(not trained.any() for _, trained, *_ in found) == 1
            assert "validation data: " in caplog.text and "image 2 of the row" in caplog.text
        else:
            with pytest.raises(ValueError, match=f"validation data: .*{CUT}"):
                list(held.batches)


def test_a_file_that_is_gone_when_a_run_goes_on(path, tokenizer, tmp_path):
    iterator = batches(path, tokenizer, bad_rows="drop")
    next(iterator)
    state = iterator.get_state()
    [(position, _), *_] = next(keys for shard in state["shards"].values() for keys in shard["open"])
    [name] = Path(iterator.corpus.where(position)).name.split(" line ")[1:]
    (tmp_path / f"{int(name) - 1}.png").unlink()
    with pytest.raises(ValueError, match=rf"line {name}: image 1 of the row: there is no file .* so bring it back"):
        dropping(path, tokenizer).set_state(state)


@pytest.mark.parametrize("kind", ["float", "large"])
def test_what_a_header_shows_is_not_left_to_decoding(kind, write_rows, tokenizer, tmp_path, monkeypatch):
    Image.new("F" if kind == "float" else "RGB", (96, 64)).save(tmp_path / "a.tiff")
    iterator = batches(write_rows([asks(part(image="a.tiff"))]), tokenizer)
    if kind == "large":
        vision = iterator.corpus.vision
        monkeypatch.setattr(vision, "_policy", replace(vision._policy, max_pixels=1000))
    [[err]] = iterator.corpus.load([0])
    assert ("floating-point numbers" if kind == "float" else "more than max_pixels=1000") in str(err)


def test_paths_are_relative_to_data_that_are_named_by_a_relative_path(path, tokenizer, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    drawn(64, 96).save("data/a.png")
    Path("data/a.jsonl").write_text(json.dumps(asks(part(image="a.png"))) + "\n")
    assert len(list(documents(batches("data/a.jsonl", tokenizer), tokenizer))) == 1
    Path("data").rename("other")
    vision = replace(VISION, folder="other")
    Path("b.jsonl").write_text(json.dumps(asks(part(image="a.png"))) + "\n")
    assert len(list(documents(batches("b.jsonl", tokenizer, vision=vision), tokenizer))) == 1
