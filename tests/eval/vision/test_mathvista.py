"""MathVista: the authors' normalisation, what rules extract, and stored extractions."""

import json
import random
import re

import pytest

from eval.score import ScoreConfig, score
from eval.scorers.mathvista import edit_distance, normalized, quick_extraction
from eval.tasks import get_task
from eval.tasks.data import Row
from eval.tasks.gsm8k import CARD_REQUEST
from eval.tasks.mathvista import extract
from tests.conftest import shared_dir
from tests.eval.vision.pictures import load, parts_of, png, text_of, write_parquet
from tests.linear_time import assert_linear

CHOICES = ["6cm", "7cm", "4cm", "5cm"]


@pytest.mark.parametrize(
    ("extraction", "choices", "kind", "precision", "form"),
    [
        ("B", CHOICES, "text", None, "7cm"), ("(b) or (c)", CHOICES, "text", None, "7cm"),
        (" D ", CHOICES, "text", None, "5cm"), ("E", CHOICES, "text", None, "6cm"),
        ("7 cm", CHOICES, "text", None, "7cm"),
        ("", CHOICES, "text", None, "6cm"), (None, ["None at all", "no"], "text", None, "no"),
        (5, CHOICES, "text", None, "5cm"), ("(z)", ["azure", "Zoo"], "text", None, "Zoo"),
        ("14", None, "integer", None, "14"), ("14.9", None, "integer", None, "14"),
        ("-3.5", None, "integer", None, "-3"), ("14 cm", None, "integer", None, None),
        (14.0, None, "integer", None, "14"), ("inf", None, "integer", None, None),
        ("1.25", None, "float", 1, "1.2"), ("3", None, "float", 2.0, "3.0"), ("x", None, "float", 1, None),
        ("1.5", None, "float", None, None), ("[1, 2]", None, "list", None, "[1, 2]"),
        ([1, 2], None, "list", None, "[1, 2]"),
        (None, None, "integer", None, None),
    ],
)  # fmt: skip
def test_the_form_of_an_extraction(extraction, choices, kind, precision, form):
    assert normalized(extraction, choices, kind, precision) == form


def test_edit_distances_are_those_of_the_table():
    def table(a, b):
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, start=1):
            before, row = row, [i]
            for j, y in enumerate(b, start=1):
                row.append(min(row[-1] + 1, before[j] + 1, before[j - 1] + (x != y)))
        return row[-1]

    draw = random.Random(0)
    for _ in range(500):
        a, b = ("".join(draw.choices("abc", k=draw.randint(0, 9))) for _ in range(2))
        assert edit_distance(a, b) == table(a, b), (a, b)


def test_what_is_quoted_as_the_answer_is_that_of_the_authors_pattern():
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices(['The answer is "', '"', ".", "a", "\n", '".'], k=draw.randint(0, 8)))
        found = re.search(r'The answer is "(.*)"\.', text)
        assert quick_extraction(text, None, "list") == (found and found[1]), text
    assert_linear(lambda text: quick_extraction(text, None, "list"), 'The answer is "')


@pytest.mark.parametrize(
    ("response", "choices", "kind", "found"),
    [
        ("7cm", CHOICES, "text", "7cm"), ("The answer is (B).", CHOICES, "text", "B"),
        ("so it is 7cm", CHOICES, "text", None),
        ("Working.\nAnswer: 7cm", CHOICES, "text", "7cm"), (r"Hence \boxed{B}.", CHOICES, "text", "B"),
        (" 14 ", None, "integer", "14"), ("1,200 dollars", None, "integer", "1200"), ("5", None, "float", "5.0"),
        ('I think: The answer is "14 cm".', None, "integer", "14 cm"), ("none", None, "integer", None),
        ("First [1, 2], then [3, 4].", None, "list", "[3, 4]"), ("", None, "integer", None),
    ],
)  # fmt: skip
def test_what_rules_extract(response, choices, kind, found):
    assert extract(response, choices, kind) == found


def row(**changes):
    return {
        "pid": "6", "question": "How long is AC?", "image": "images/6.jpg",
        "decoded_image": {"bytes": png("blue"), "path": "6.jpg"}, "choices": CHOICES, "unit": None, "precision": None,
        "answer": "6cm", "question_type": "multi_choice", "answer_type": "text",
        "metadata": {"task": "geometry problem solving"}, "query": "",
    } | changes  # fmt: skip


def test_the_prompts(tmp_path):
    number = row(
        pid="7", choices=None, unit="g", precision=2.0, answer="1.20", question_type="free_form", answer_type="float"
    )
    write_parquet(tmp_path / "mathvista" / "data" / "testmini-00000-of-00001.parquet", [row(), number])
    choice, number = load("mathvista", tmp_path, "official")
    image, text = parts_of(choice)
    assert image["image"].read() == png("blue")
    assert text["text"] == (
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
        "Question: How long is AC?\nChoices:\n(A) 6cm\n(B) 7cm\n(C) 4cm\n(D) 5cm"
    )
    assert text_of(number).startswith("Hint: Please answer the question requiring a floating-point number with two")
    assert text_of(number).endswith("Question: How long is AC? (Unit: g)")
    assert (choice.id, choice.group, choice.target) == ("6", "geometry problem solving", "6cm")
    card, _ = load("mathvista", tmp_path)
    assert text_of(card) == f"Question: How long is AC?\nChoices:\n(A) 6cm\n(B) 7cm\n(C) 4cm\n(D) 5cm\n{CARD_REQUEST}"


@pytest.mark.parametrize(
    ("protocol", "response", "prediction"),
    [
        ("official", "A", "6cm"),
        ("official", "six cm", "6cm"),
        ("card", "six cm", None),
        ("official", "6\ncm", None),
        ("card", r"\boxed{A}", "6cm"),
        ("official", "", None),
    ],
)
def test_one_short_line_is_taken_for_an_extraction_as_by_the_authors(tmp_path, protocol, response, prediction):
    write_parquet(tmp_path / "mathvista" / "testmini.parquet", [row()])
    (document,) = load("mathvista", tmp_path, protocol)
    verdict = document.score(response)
    assert (verdict.prediction, verdict.correct, verdict.parsed) == (
        prediction, prediction == "6cm", prediction is not None,
    )  # fmt: skip


def test_what_a_judge_reads_is_normalised(tmp_path):
    write_parquet(tmp_path / "mathvista" / "testmini.parquet", [row()])
    (document,) = load("mathvista", tmp_path)
    assert document.judging.score("(A)").correct and not document.judging.score("NONE").parsed
    asked = document.judging.ask("It may be six.")
    assert "How long is AC?" in asked and asked.endswith("It may be six.")


def test_the_authors_question_file_lies_beside_its_images(tmp_path):
    folder = tmp_path / "mathvista"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "6.jpg").write_bytes(png("green"))
    plain = {name: value for name, value in row().items() if name not in ("decoded_image", "query")}
    (folder / "testmini.json").write_text(json.dumps({"6": plain}))
    (document,) = load("mathvista", tmp_path)
    assert parts_of(document)[0]["image"].read() == png("green")


def test_stored_extractions_count_and_are_told(tmp_path, capsys):
    plain = {name: value for name, value in row().items() if name not in ("decoded_image", "query")}
    rows = {
        "6": plain | {"response": "It is B, or rather A", "extraction": "A"},
        "7": plain | {"pid": "7", "response": "It is B.", "extraction": ""},
        "8": plain | {"pid": "8", "response": "The answer is (A)."},
    }
    path = tmp_path / "output_model.json"
    path.write_text(json.dumps(rows))
    results = score(ScoreConfig("mathvista", str(path), out=str(tmp_path / "out")))["tasks"]["mathvista"]
    # An empty extraction is nearest to the shortest choice, the first of four.
    assert results["metrics"]["accuracy"]["value"] == 1
    assert results["judge"]["asked"] == {"stored": 2} and results["judge"]["read"] == 2
    # By rules the first two say A and B, the third A.
    assert results["judge"]["without"]["value"] == pytest.approx(2 / 3)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "of 2 of 3 responses (66.67 %) the answer was read by an extraction stored beside it" in page


def test_stored_answers_give_the_authors_score():
    shared = shared_dir()
    if shared is None:
        pytest.skip("the shared folder is absent")
    folder = shared / "data" / "mathvista"
    answers = str(folder / "output_bard.json")
    results = score(ScoreConfig("mathvista", answers))["tasks"]["mathvista"]
    assert results["metrics"]["accuracy"]["value"] == 0.348
    joined = score(ScoreConfig("mathvista", answers, data_dir=str(shared / "data")))["tasks"]["mathvista"]
    assert joined["metrics"] == results["metrics"]
    want = json.loads((folder / "scores_bard.json").read_text())["task"]
    assert {name: round(each["value"] * each["n"]) for name, each in results["groups"].items()} == {
        name: each["correct"] for name, each in want.items()
    }


def test_the_prompts_are_those_that_the_authors_stored():
    shared = shared_dir()
    if shared is None:
        pytest.skip("the shared folder is absent")
    stored = json.loads((shared / "data" / "mathvista" / "output_bard.json").read_text())
    given = "there", [Row(fields, pid, number) for number, (pid, fields) in enumerate(stored.items())]
    documents = get_task("mathvista").load("official", None, asked=False, given=given).documents
    assert len(documents) == 1000
    pairs = [(text_of(document), stored[document.id]["query"]) for document in documents]
    # The choices of ten questions have come into another order since.
    assert sum(ours == theirs for ours, theirs in pairs) == 990
    assert all(ours == theirs or "Choices:" in ours for ours, theirs in pairs)
