"""Files of answers as other evaluations write them."""

import json

import pytest

from eval.answers import extraction_of, questions_in, read_answers
from eval.tasks.data import Row


@pytest.mark.parametrize(
    ("row", "known"),
    [
        ({"id": 3, "response": "x"}, (3, "x")),
        ({"index": 7, "prediction": "B"}, (7, "B")),
        ({"pid": "9", "response": "y", "prediction": "z"}, ("9", "y")),
        ({"question_id": 4, "annotation": {}, "result": {"gen": "C"}}, (4, "C")),
        ({"question": "q", "predict": "text"}, (0, "text")),
        ({"id": 1, "index": 2, "response": ""}, (1, "")),
        ({"pid": "9", "response": None, "extraction": ""}, ("9", "")),
        ({"question_id": 4, "annotation": {"id": "val_4"}, "result": {"gen": "C"}}, ("val_4", "C")),
        ({"index": 7, "prediction": 3}, (7, "3")),
        ({"index": 7, "prediction": float("nan")}, (7, "")),
    ],
)
def test_the_names_of_the_two_fields(tmp_path, row, known):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (found,) = read_answers(path)
    assert (found.fields["id"], found.fields["response"]) == known
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row]))
    assert read_answers(path)[0].fields == found.fields


@pytest.mark.parametrize(("row", "name"), [({"response": "x"}, "id"), ({"id": 1, "answer": "x"}, "response")])
def test_a_row_without_one_of_them_is_refused(tmp_path, row, name):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: no field '{name}'; the row has"):
        read_answers(path)


def test_answers_by_id_and_folders_of_subjects(tmp_path):
    path = tmp_path / "total.json"
    path.write_text(json.dumps({"b": "B", "a": "A"}))
    assert [(row.fields["id"], row.fields["response"]) for row in read_answers(path)] == [("b", "B"), ("a", "A")]
    for subject in ("Math", "Art"):
        (tmp_path / "model" / subject).mkdir(parents=True)
        (tmp_path / "model" / subject / "output.json").write_text(json.dumps([{"id": subject, "response": "x"}]))
    rows = read_answers(tmp_path / "model")
    assert [(row.fields["id"], row.number) for row in rows] == [("Art", 0), ("Math", 1)]
    (tmp_path / "model" / "Math" / "parsed_output.json").write_text("[]")
    assert read_answers(tmp_path / "model") == rows
    for path in (tmp_path / "model").glob("*/output.json"):
        path.rename(path.with_name("parsed_output.json"))
    assert [row.fields["id"] for row in read_answers(tmp_path / "model")] == ["Art", "Math"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"is a folder without SUBJECT/output\.json"):
        read_answers(tmp_path / "none")
    for subject in ("Math", "Art"):
        (tmp_path / "none" / f"{subject}.json").write_text(json.dumps([{"id": subject, "response": "x"}]))
    assert [row.fields["id"] for row in read_answers(tmp_path / "none")] == ["Art", "Math"]


def test_a_workbook_is_refused(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is a workbook; save its sheet as CSV or TSV"):
        read_answers(tmp_path / "a.xlsx")


def test_whether_rows_are_questions_too_and_who_has_read_them():
    rows = [Row({"id": 1, "answer": "A"}, "here", 0), Row({"id": 2}, "here", 1)]
    assert questions_in(rows[:1], ("id", "answer")) and not questions_in(rows, ("id", "answer"))
    assert not questions_in(rows, ())
    assert extraction_of(rows[0]) == {}
    assert extraction_of(Row({"extraction": "A"}, "here", 0)) == {"judge": "stored", "extraction": "A"}
    asked = {"extraction": None, "judge": "m", "outcome": "unparsed"}
    assert extraction_of(Row(asked, "here", 0)) == {"judge": "m", "extraction": None}
    assert extraction_of(Row({"judge": "Correct", "parsed_pred": "A"}, "here", 0)) == {}
