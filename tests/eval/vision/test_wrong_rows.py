"""A row that lacks a field of the prompt or the verdict is refused, and scored without the fields of the prompt."""

import json
import re

import pytest

from tests.conftest import REPO
from tests.eval.conftest import write_rows
from tests.eval.vision.pictures import load, png, text_of

_CHOICE = {"question": "Which way?", "A": "Left", "B": "Right", "answer": "B"}
_BOX = {"split": "RefCOCO_val", "bbox": [20, 20, 100, 60], "width": 200, "height": 100}
_NUMBER = {"question_type": "free_form", "answer_type": "float", "precision": 1, "answer": "1.5"}
# A file of each task with one row of it, the fields that a prompt alone needs, and those of the verdict.
ROWS = {
    "mmmu": (
        "validation", {"id": "validation_Art_1", "question": "q", "options": ["red", "blue"], "answer": "B"},
        ["question", "options"], ["answer"],
    ),
    "mathvista": ("testmini", {"pid": "1", "question": "q", **_NUMBER}, ["question"], [*_NUMBER]),
    "realworldqa": ("test", _CHOICE, ["question"], ["answer"]),
    "mmbench": ("dev", {"index": 1, **_CHOICE}, ["question"], ["index", "answer"]),
    "ocrbench": ("test", {"question": "q", "answer": "7"}, ["question"], ["answer"]),
    "refcoco": ("test", {"description": "man in red", **_BOX}, ["description"], ["bbox", "width", "height"]),
    "videomme": (
        "test", {"videoID": "a", "question": "q", "options": ["A. red", "B. blue"], "answer": "B"},
        ["videoID", "question"], ["options", "answer"],
    ),
}  # fmt: skip


def load_without(folder, task, name=None, **settings):
    """Loads the row of a task, one of whose fields has another name."""
    split, row, *_ = ROWS[task]
    fields = {"image": "a.png"} | {f"{key}_" if key == name else key: value for key, value in row.items()}
    place = write_rows(folder / task / f"{split}.jsonl", [fields]).parent
    (place / "a.png").write_bytes(png())
    (place / "data").mkdir(exist_ok=True)
    (place / "data" / "a.mp4").write_bytes(b"video")
    return load(task, folder, **settings)


@pytest.mark.parametrize("task", ROWS)
def test_a_row_that_lacks_a_field_is_refused(tmp_path, task):
    split, _, of_prompt, of_verdict = ROWS[task]
    assert len(load_without(tmp_path, task)) == 1
    for name in of_prompt + of_verdict:
        with pytest.raises(ValueError, match=rf"{split}\.jsonl:1: .*no field '{name}'.*; the row has \[.*'{name}_'"):
            load_without(tmp_path, task, name)
    for name in of_prompt:
        assert len(load_without(tmp_path, task, name, asked=False)) == 1
    for name in of_verdict:
        with pytest.raises(ValueError, match=f"no field '{name}'"):
            load_without(tmp_path, task, name, asked=False)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("mathvista", {"question_type": "multiple-choice"}, "is none of multi_choice, free_form."),
        ("mathvista", {"answer_type": "number"}, "answer_type='number' is none of text, integer, float, list."),
        ("mmmu", {"question_type": "choice"}, "'choice' is none of multiple-choice, open, short-answer."),
        ("mmmu", {"question_type": "multiple-choice", "options": []}, "the question_type of a question"),
    ],
)
def test_a_kind_that_is_not_known_is_refused(tmp_path, monkeypatch, task, changes, message):
    split, row, *more = ROWS[task]
    monkeypatch.setitem(ROWS, task, (split, row | changes, *more))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_without(tmp_path, task)


def test_the_rows_of_the_page_are_read(tmp_path):
    page = (REPO / "docs" / "evaluating_vision.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/(\w+\.jsonl)` \| `(\{.*?\})`", page, re.MULTILINE)
    assert sorted(task for task, *_ in rows) == sorted(ROWS)
    for task, name, row in rows:
        place = write_rows(tmp_path / task / name, [json.loads(row)]).parent
        for file in ("images/1.jpg", "data/1.mp4"):
            (place / file).parent.mkdir()
            (place / file).write_bytes(png())
        (document,) = load(task, tmp_path, "official")
        fields = json.loads(row)
        assert fields.get("question", fields.get("description")) in text_of(document)
        for name_of_field in fields:
            write_rows(place / name, [{key: value for key, value in fields.items() if key != name_of_field}])
            with pytest.raises(ValueError, match=rf"{name}:1: "):
                load(task, tmp_path, "official")
