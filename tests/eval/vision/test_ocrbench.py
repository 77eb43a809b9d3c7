"""OCRBench: the authors' rule, and the three files that have the questions."""

import json

import pytest

from eval.score import ScoreConfig, score
from eval.tasks.ocrbench import holds_answer
from tests.eval.vision.pictures import base64_of, load, parts_of, png, text_of, write_parquet, write_tsv


@pytest.mark.parametrize(
    ("response", "answers", "is_formula", "right"),
    [
        ("The sign says STOP.", ["stop"], False, True), ("s t o p", ["stop"], False, False),
        ("New\nYork", ["new york"], False, True), ("$5.00", ["5.00", "five"], False, True),
        ("", ["stop"], False, False), ("anything", [""], False, True), ("Centre ", [" centre\n"], False, True),
        ("x^{2} + 1", ["x ^ { 2 } + 1"], True, True), ("X^{2}+1", ["x^{2}+1"], True, False),
        ("so: x\n^2", ["x ^ 2"], True, True),
    ],
)  # fmt: skip
def test_a_response_is_right_if_it_holds_an_answer(response, answers, is_formula, right):
    assert holds_answer(response, answers, is_formula=is_formula) is right


def test_the_hubs_rows(tmp_path):
    rows = [
        {"dataset": "IIIT5K", "question": "what is written?", "question_type": "Regular Text Recognition",
         "answer": ["CENTRE"], "image": {"bytes": png(), "path": None}},
        {"dataset": "HME100k", "question": "Write the formula.",
         "question_type": "Handwritten Mathematical Expression Recognition", "answer": ["a + B"],
         "image": {"bytes": png(), "path": None}},
    ]  # fmt: skip
    write_parquet(tmp_path / "ocrbench" / "test.parquet", rows)
    text, formula = load("ocrbench", tmp_path)
    assert (text_of(text), text.id, text.group) == ("what is written?", 0, "Regular Text Recognition")
    assert text.score("centre").correct and formula.score("so a+B").correct and not formula.score("a+b").correct
    # Nothing is extracted, so that no response is without an answer.
    assert text.score("no").parsed and text.score("no").prediction is None


def test_the_sheet_of_vlmevalkit(tmp_path):
    row = {"image": base64_of(png(size=(40, 40))), "question": "q", "category": "Key Information Extraction"}
    rows = [{"index": "5", "answer": "['$5', '5 dollars']", **row}, {"index": "6", "answer": "7", **row}]
    write_tsv(tmp_path / "ocrbench" / "OCRBench.tsv", rows)
    first, second = load("ocrbench", tmp_path, "official")
    assert (first.id, first.target, first.group) == ("5", "$5 or 5 dollars", "Key Information Extraction")
    assert first.score("5 Dollars").correct and second.score("it is 7").correct


def test_the_authors_file_and_their_answers(tmp_path):
    folder = tmp_path / "ocrbench"
    (folder / "OCRBench_Images").mkdir(parents=True)
    (folder / "OCRBench_Images" / "a.png").write_bytes(png("blue"))
    row = {"image_path": "OCRBench_Images/a.png", "dataset_name": "svt", "type": "Irregular Text Recognition",
           "question": "q", "answers": "inn", "id": 3}  # fmt: skip
    (folder / "OCRBench.json").write_text(json.dumps([row]))
    (document,) = load("ocrbench", tmp_path)
    assert parts_of(document)[0]["image"].read() == png("blue") and document.id == 3
    path = tmp_path / "model.json"
    path.write_text(json.dumps([row | {"predict": "The Inn"}, row | {"id": 4, "predict": "out"}]))
    results = score(ScoreConfig("ocrbench", str(path)))["tasks"]["ocrbench"]
    assert results["metrics"]["accuracy"]["value"] == 0.5


def test_the_five_parts_of_the_authors_table(tmp_path):
    kinds = {
        "Regular Text Recognition": 1, "Digit String Recognition": 0, "Scene Text-centric VQA": 1,
        "Doc-oriented VQA": 0, "Key Information Extraction": 1,
        "Handwritten Mathematical Expression Recognition": 1, "a kind of its own": 0,
    }  # fmt: skip
    rows = [
        {"dataset_name": "svt", "type": kind, "question": "q", "answers": "inn", "predict": "inn" if right else "out"}
        for kind, right in kinds.items()
    ]
    path = tmp_path / "model.json"
    path.write_text(json.dumps(rows))
    results = score(ScoreConfig("ocrbench", str(path)))["tasks"]["ocrbench"]
    assert {name: (each["value"], each["n"]) for name, each in results["metrics"].items()} == {
        "accuracy": (pytest.approx(4 / 7), 7), "text_recognition": (0.5, 2), "scene_text_vqa": (1.0, 1),
        "document_vqa": (0.0, 1), "key_information": (1.0, 1), "formulas": (1.0, 1),
    }  # fmt: skip
    assert len(results["groups"]) == 7


def test_no_answer_is_refused(tmp_path):
    write_tsv(tmp_path / "ocrbench" / "OCRBench.tsv", [{"index": "5", "answer": "[]", "question": "q"}])
    with pytest.raises(ValueError, match=r"answer=\[\] has no answer"):
        load("ocrbench", tmp_path)
