"""RefCOCO: boxes in responses, their overlap, and the mean over the splits."""

import json

import pytest

from eval.card import against_card
from eval.score import ScoreConfig, score
from eval.scorers.boxes import as_box, first_box, overlap
from eval.tasks.refcoco import SPLITS
from tests.eval.conftest import write_rows
from tests.eval.vision.pictures import base64_of, load, png, text_of, write_tsv

BOX = (0.1, 0.2, 0.5, 0.6)


@pytest.mark.parametrize(
    "response",
    [
        "[100, 200, 500, 600]", '```json\n[\n\t{"bbox_2d": [100, 200, 500, 600], "label": "man"}\n]\n```',
        '{"bbox": [100.0, 200, 5e2, 600.]} and [1, 2, 3, 4]', "[[100, 200, 500, 600], [0, 0, 9, 9]]",
        "(100,200),(500,600)", "<|box_start|>(100,200),(500,600)<|box_end|>", "[500 600 100 200]",
        "In row 3 of 5 it is at [100, 200], [500, 600].", "[1, 2, 3, 4, 5] is no box, (100, 200, 500, 600) is",
    ],
)  # fmt: skip
def test_the_first_box_of_a_response(response):
    assert first_box(response) == pytest.approx(BOX)


@pytest.mark.parametrize(
    "response", ["", "no box", "[1, 2, 3]", "100, 200, 500, 600", "[x1, y1, x2, y2]", "[" + "1" * 100_000]
)
def test_no_box(response):
    assert first_box(response) is None


def test_boxes_end_at_the_picture():
    assert first_box("[-50, 100, 1200, 300]") == pytest.approx((0.0, 0.1, 1.0, 0.3))


@pytest.mark.parametrize(
    ("other", "share"),
    [
        (BOX, 1.0), ((0.1, 0.2, 0.3, 0.6), 0.5), ((0.3, 0.2, 0.7, 0.6), 1 / 3), ((0.5, 0.2, 0.7, 0.6), 0.0),
        ((0.1, 0.2, 0.1, 0.6), 0.0), ((0.0, 0.0, 1.0, 1.0), 0.16),
    ],
)  # fmt: skip
def test_the_overlap_of_boxes(other, share):
    assert overlap(BOX, other) == pytest.approx(share) and overlap(other, BOX) == pytest.approx(share)
    assert as_box(BOX) == BOX


def row(split="RefCOCO_val", **changes):
    return {
        "image": "a.png", "description": "man in red", "split": split, "bbox": [20, 20, 100, 60], "width": 200,
        "height": 100,
    } | changes  # fmt: skip


def folder_with(tmp_path, rows):
    write_rows(tmp_path / "refcoco" / "test.jsonl", rows)
    (tmp_path / "refcoco" / "a.png").write_bytes(png(size=(200, 100)))
    return tmp_path


@pytest.mark.parametrize("protocol", ["card", "official"])
def test_a_box_is_right_from_half_an_overlap_in_thousandths(tmp_path, protocol):
    (document,) = load("refcoco", folder_with(tmp_path, [row()]), protocol)
    assert text_of(document) == (
        'Locate every object that matches the description "man in red" in the image. Report bbox coordinates in JSON '
        "format."
    )
    assert (document.group, document.target) == ("RefCOCO_val", "[100, 200, 500, 600]")
    half = document.score("[100, 200, 300, 600]")
    assert half.correct and half.metrics["overlap"] == [pytest.approx(0.5)]
    assert half.prediction == "[100, 200, 300, 600]"
    # Neither pixels nor shares of 1 are tried, and of several boxes only the first counts.
    for response in ("[20, 20, 100, 60]", "[0.1, 0.2, 0.5, 0.6]", "[0, 0, 50, 50] or [100, 200, 500, 600]", "none"):
        assert not document.score(response).correct, response
    assert not document.score("none").parsed


def test_the_sheet_of_vlmevalkit(tmp_path):
    question = "Please provide the bounding box coordinate of the region this sentence describes: <ref>the dog</ref>"
    shared = {"image": base64_of(png(size=(40, 40))), "question": question, "width": "200", "height": "100"}
    box = {"bbox_x1": "20.0", "bbox_y1": "20", "bbox_x2": "100", "bbox_y2": "60"}
    rows = [
        {"index": "0", "split": "RefCOCO+_testA", **shared, **box},
        {"index": "0", "category": "RefCOCOg test", "answer": "[20, 20, 100, 60]", **shared},
    ]
    rows = [dict.fromkeys([*rows[0], *rows[1]], "") | each for each in rows]
    for name in box:
        del rows[1][name]
    write_tsv(tmp_path / "refcoco" / "RefCOCO.tsv", rows[:1])
    (first,) = load("refcoco", tmp_path)
    write_tsv(tmp_path / "refcoco" / "RefCOCO.tsv", rows[1:])
    (second,) = load("refcoco", tmp_path)
    assert [each.id for each in (first, second)] == ["RefCOCO+_testA_0", "RefCOCOg_test_0"]
    assert '"the dog"' in text_of(first) and first.target == second.target == "[100, 200, 500, 600]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "RefCOCO_test"}, "split='RefCOCO_test' is none of RefCOCO_val"),
        ({"bbox": [20, 20, 100]}, "no box of four numbers in pixels"),
        ({"width": None}, "no box of four numbers"),
        ({"bbox": [20, 20, 300, 60]}, r"the box \[20.0, 20.0, 300.0, 60.0\] does not lie in an image of 200 x 100"),
        ({"bbox": [100, 20, 20, 60]}, "give left, top, right and bottom"),
    ],
)
def test_wrong_rows(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load("refcoco", folder_with(tmp_path, [row(**changes)]))


def test_the_headline_is_the_mean_over_the_splits(tmp_path):
    rows = [row(split) for split in SPLITS] + [row(), row()]
    folder_with(tmp_path, rows)
    right = "[100, 200, 500, 600]"
    answers = [{"id": number, "response": "nothing" if number in (0, 8, 9) else right} for number in range(10)]
    path = write_rows(tmp_path / "answers.jsonl", answers)
    out = tmp_path / "out"
    score(ScoreConfig("refcoco", str(path), protocol="card", data_dir=str(tmp_path), out=str(out), size="2b"))
    told = json.loads((out / "results.json").read_text())["tasks"]["refcoco"]
    assert told["metrics"]["accuracy"]["value"] == 0.7
    assert (told["macro"]["value"], told["macro"]["groups"], told["headline_macro"]) == (7 / 8, 8, True)
    assert told["card"]["difference"] == pytest.approx(7 / 8 - 0.843)
    assert "refcoco, accuracy, mean of the groups" in (out / "report.html").read_text()
    thinking = against_card(told, "refcoco", {"protocol": "card"}, "2b", "thinking")
    assert thinking["difference"] == pytest.approx(7 / 8 - 0.848)


def test_a_box_in_shares_of_the_picture_is_one_too(tmp_path):
    (document,) = load("refcoco", folder_with(tmp_path, [row(bbox=[0.1, 0.2, 0.5, 0.6])]))
    assert document.target == "[100, 200, 500, 600]"
