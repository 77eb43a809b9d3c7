"""MMMU: the authors' parse, Qwen's prompt, and files of answers."""

import json
import re

import pytest

from eval.score import ScoreConfig, score
from eval.scorers.mmmu import is_right, read_choice, read_open
from eval.tasks import get_task
from tests.conftest import shared_dir
from tests.eval.conftest import write_rows
from tests.eval.vision.pictures import base64_of, load, parts_of, png, write_parquet, write_tsv
from tests.linear_time import assert_linear

OPTIONS = {"A": "red fish", "B": "blue fish", "C": "Not exist"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("'B'", "B"), ("(A) or (C)", "C"), ("(C) not (A)", "A"),
        ("A B", "B"), ("A, B", "B"), ("(A) B", "A"), ("It is B , I think", "B"), ("b", None),
        ("The fish in the picture is a blue fish.", "B"), ("blue fish", None),
        ("First a Red Fish and then a blue fish", "B"), ("It does not exist at all here.", "C"),
        ("I can not say what this picture shows.", None), ("", None), ("?.", None), (".B", "B"), ("B?!", "B"),
        ("B!?", None),
    ],
)  # fmt: skip
def test_the_letter_that_the_authors_read(response, letter):
    assert read_choice(response, OPTIONS) == letter


def test_of_two_options_at_one_place_the_first_counts():
    assert read_choice("what I see there is clearly one", {"A": "one", "B": "one"}) == "A"


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("The answer is 1/64", ["1/64"], True), ("x = 3.429", ["24/7", "3.429"], True),
        ("So the result is 3.4291 meters", ["24/7", "3.429"], True),
        ("It is 1,234", ["1234"], True), ("1e3", ["1000"], True), ("-5", ["5"], False),
        ("Florida, I think", ["Tampa", "Florida"], True), ("florida", ["Tampa", "Florida"], True),
        ("a = 4\nb = 5", ["4"], False), ("b = 5\na = 4", ["4"], True), ("c", ["C"], True),
        ("it is cc", ["C"], False), ("vitamin c deficiency", ["C"], True), ("", [""], True),
    ],
)  # fmt: skip
def test_what_the_authors_count_as_right_of_an_open_question(response, gold, right):
    assert is_right(read_open(response), gold) is right


def test_the_answers_to_an_open_question_are_the_authors():
    # shared/data/mmmu holds these two.
    assert sorted(map(str, read_open("1/4"))) == ["1.0", "1/4", "4.0"]
    # The sentences are not split: the text is small before a capital letter is looked for.
    assert set(read_open("It is 7. So 8 was wrong")) == {"8 was wrong", 8.0}


@pytest.mark.parametrize("unit", ["0", "1.", "is ", "so\n"])
def test_open_questions_are_read_in_linear_time(unit):
    assert_linear(read_open, unit, end="x")


def row(**changes):
    return {
        "id": "validation_Math_1", "question": "What is in <image 1>?", "options": "['red fish', 'blue fish']",
        "image_1": {"bytes": png("red"), "path": "1.png"}, "image_2": {"bytes": None, "path": None}, "answer": "B",
        "question_type": "multiple-choice",
    } | changes  # fmt: skip


def test_the_prompts(tmp_path):
    write_parquet(tmp_path / "mmmu" / "Math" / "validation-00000-of-00001.parquet", [row()])
    (card,) = load("mmmu", tmp_path)
    image, text = parts_of(card)
    assert (image["min_pixels"], image["max_pixels"], image["image"].read()) == (1_003_520, 4_014_080, png("red"))
    assert text["text"] == (
        "Question: What is in <image 1>?\nOptions:\nA. red fish\nB. blue fish\n"
        "Please select the correct answer from the options above."
    )
    assert (card.id, card.group, card.target) == ("validation_Math_1", "Math", "B")
    (official,) = load("mmmu", tmp_path, "official")
    before, image, after = parts_of(official)
    assert (before["text"], image["type"], image.keys()) == ("What is in ", "image", {"type", "image"})
    assert after["text"] == (
        "?\n(A) red fish\n(B) blue fish\n\nAnswer with the option's letter from the given choices directly."
    )


def test_an_open_question_and_images_that_the_text_does_not_mention(tmp_path):
    images = {"image_1": {"bytes": png("red"), "path": ""}, "image_2": {"bytes": png("blue"), "path": ""}}
    rows = [row(question="Name <image 2>, again <image 2>.", options="[]", question_type="open", **images)]
    write_parquet(tmp_path / "mmmu" / "validation.parquet", rows)
    (document,) = load("mmmu", tmp_path, "official")
    first, text, second, rest = parts_of(document)
    assert (first["image"].read(), second["image"].read()) == (png("red"), png("blue"))
    assert text["text"] == "Name "
    assert rest["text"] == ", again <image 2>.\nAnswer the question using a single word or phrase."


def test_the_sheet_of_vlmevalkit_has_both_splits(tmp_path):
    shared = {"question": "q", "A": "red", "B": "blue", "image": base64_of(png(size=(40, 40)))}
    rows = [
        {"index": "1", "id": "dev_Math_1", "answer": "A", "split": "dev", **shared},
        {"index": "2", "id": "validation_Math_2", "answer": "B", "split": "validation", **shared},
        {"index": "3", "id": "validation_Math_3", "answer": "['24/7', '3.429']", "split": "validation", **shared}
        | {"A": "", "B": ""},
    ]
    write_tsv(tmp_path / "mmmu" / "MMMU_DEV_VAL.tsv", rows)
    choice, opened = load("mmmu", tmp_path)
    assert (choice.id, choice.target, opened.target) == ("validation_Math_2", "B", "24/7 or 3.429")
    assert [document.id for document in load("mmmu", tmp_path, split="dev")] == ["dev_Math_1"]


@pytest.mark.parametrize(
    ("response", "prediction"),
    [
        ("B", "B"), ("blue fish", "B"), ("The answer is (B). It cannot be A, for A is red.", "B"),
        ("**B**\n\nbecause the other one, A, is red and has no fins at all", "B"), ("no idea", None),
        ("I can't process this file.", "Z"),
    ],
)  # fmt: skip
def test_what_qwens_protocol_reads(tmp_path, response, prediction):
    write_parquet(tmp_path / "mmmu" / "validation.parquet", [row()])
    (document,) = load("mmmu", tmp_path)
    verdict = document.score(response)
    assert (verdict.prediction, verdict.correct) == (prediction, prediction == "B")
    assert verdict.parsed is (prediction is not None)


@pytest.mark.parametrize(
    ("gold", "response", "parsed", "correct"),
    [
        ("24/7", "24/7", True, True), ("3.429", "So x = 3.429.", True, True), ("3.429", "It is 4.", True, False),
        ("Tampa", "I think that the answer is Tampa", True, True), ("Tampa", "the city in Florida", False, False),
    ],
)  # fmt: skip
def test_open_questions_under_qwens_protocol(tmp_path, gold, response, parsed, correct):
    write_parquet(tmp_path / "mmmu" / "validation.parquet", [row(options="[]", question_type="open", answer=gold)])
    (document,) = load("mmmu", tmp_path)
    verdict = document.score(response)
    assert (verdict.parsed, verdict.correct) == (parsed, correct)
    assert document.judging.score("A").correct and not document.judging.score("B").correct
    assert gold in document.judging.ask("the city")


def test_a_letter_that_is_no_option_is_refused(tmp_path):
    write_parquet(tmp_path / "mmmu" / "validation.parquet", [row(answer="D")])
    with pytest.raises(ValueError, match=r"answer=\['D'\]; the letters of its 2 options are \['A', 'B'\]"):
        load("mmmu", tmp_path)


def answers(number, response, **changes):
    return {
        "id": f"validation_Math_{number}", "question_type": "multiple-choice", "answer": "B",
        "all_choices": ["A", "B"], "index2ans": {"A": "red", "B": "blue"}, "response": response,
    } | changes  # fmt: skip


def test_the_authors_files_of_answers_are_scored_without_data(tmp_path):
    opened = {"id": "validation_Art_1", "question_type": "short-answer", "answer": ["5", "five"], "response": "is 5"}
    for subject, rows in {"Math": [answers(1, "B"), answers(2, "hm"), answers(3, "(A)")], "Art": [opened]}.items():
        (tmp_path / subject).mkdir()
        (tmp_path / subject / "output.json").write_text(json.dumps(rows))
    results = score(ScoreConfig("mmmu", str(tmp_path)))["tasks"]["mmmu"]
    assert (results["n"], results["metrics"]["accuracy"]["value"]) == (4, 0.5)
    assert results["metrics"]["accuracy_random_fallback"]["value"] == 0.625
    assert results["outcomes"]["unparsed"] == 1 and "hold the questions" in results["data"]
    one = score(ScoreConfig("mmmu", str(tmp_path / "Math" / "output.json")))["tasks"]["mmmu"]
    assert one["n"] == 3


def test_of_answers_to_several_splits_the_scored_one_counts(tmp_path):
    rows = [answers(1, "B"), answers(2, "A"), answers(1, "B", id="dev_Math_1")]
    named = [row | {"split": row["id"].partition("_")[0]} for row in rows]
    qwen = [
        {"question_id": number, "annotation": row, "result": {"gen": row["response"]}}
        for number, row in enumerate(named)
    ]
    for name, content in {"kit.json": named, "qwen.json": qwen}.items():
        (tmp_path / name).write_text(json.dumps(content))
        scored = {
            split: score(ScoreConfig("mmmu", str(tmp_path / name), split=split))["tasks"]["mmmu"]
            for split in (None, "dev")
        }
        assert [(each["n"], each["metrics"]["accuracy"]["value"]) for each in scored.values()] == [(2, 0.5), (1, 1.0)]
    (tmp_path / "dev.json").write_text(json.dumps(named[2:]))
    assert score(ScoreConfig("mmmu", str(tmp_path / "dev.json")))["tasks"]["mmmu"]["n"] == 1
    with pytest.raises(ValueError, match=r"dev\.json holds no rows of the split validation"):
        score(ScoreConfig("mmmu", str(tmp_path / "dev.json"), split="validation"))


def test_parsed_answers_need_the_key_alone(tmp_path):
    key = {"validation_Math_1": {"question_type": "multiple-choice", "ground_truth": "B"},
           "validation_Math_2": {"question_type": "short-answer", "ground_truth": ["24/7", "3.429"]},
           "validation_Math_3": {"question_type": "multiple-choice", "ground_truth": "A"}}  # fmt: skip
    (tmp_path / "mmmu").mkdir()
    (tmp_path / "mmmu" / "answer_dict_val.json").write_text(json.dumps(key))
    path = tmp_path / "total_val_output.json"
    path.write_text(
        json.dumps({"validation_Math_1": "B", "validation_Math_2": "It is 3.429", "validation_Math_3": "B"})
    )
    results = score(ScoreConfig("mmmu", str(path), data_dir=str(tmp_path)))["tasks"]["mmmu"]
    assert results["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3)
    path.write_text(json.dumps([answers(1, "A", answer="A")]))
    with pytest.raises(ValueError, match="the file of answers says answer='A', the key 'B'"):
        score(ScoreConfig("mmmu", str(path), data_dir=str(tmp_path)))


def test_our_rows_of_answers_need_no_images(tmp_path):
    write_rows(tmp_path / "mmmu" / "validation.jsonl", [row(image_1="images/1.png", image_2=None)])
    path = write_rows(tmp_path / "answers.jsonl", [{"id": "validation_Math_1", "response": "(B)"}])
    results = score(ScoreConfig("mmmu", str(path), data_dir=str(tmp_path)))["tasks"]["mmmu"]
    assert results["metrics"]["accuracy"]["value"] == 1
    with pytest.raises(ValueError, match=r"there is no image .*1\.png"):
        load("mmmu", tmp_path)


def test_stored_answers_give_the_authors_scores():
    """900 answers of one model, each parsed as by the authors' code, their guesses left out."""
    shared = shared_dir()
    if shared is None:
        pytest.skip("the shared folder is absent")
    folder = shared / "data" / "mmmu"
    gold = {each["id"]: each for each in json.loads((folder / "golden_llava1.5_13b.json").read_text())}
    seen = 0
    for path in sorted((folder / "llava1.5_13b").glob("*/output.json")):
        for each in json.loads(path.read_text()):
            want = gold[each["id"]]
            if each["question_type"] == "multiple-choice":
                found = read_choice(each["response"], each["index2ans"])
                correct = found == each["answer"]
            else:
                read = read_open(each["response"])
                answer = each["answer"]
                found, correct = (
                    sorted(map(str, read)),
                    is_right(read, answer if isinstance(answer, list) else [answer]),
                )
            assert (found, correct) == (want["parsed"], want["correct"]), each["id"]
            seen += 1
    assert seen == 900
    results = score(ScoreConfig("mmmu", str(folder / "llava1.5_13b")))["tasks"]["mmmu"]
    assert round(results["metrics"]["accuracy"]["value"] * 900) == 329


def test_the_subjects_are_the_hubs():
    task = get_task("mmmu")
    assert len(task.data.parts) == 30 and re.fullmatch("[0-9a-f]{40}", task.data.hub.revision)
    assert "Manage" in task.data.parts


def test_the_questions_of_a_file_of_answers_go_before_the_data(tmp_path):
    write_rows(tmp_path / "mmmu" / "validation.jsonl", [row(image_1=None, image_2=None)])
    other = {"A": "blue fish", "B": "red fish"}
    path = tmp_path / "output.json"
    path.write_text(json.dumps([answers(1, "I do say it is a red fish", index2ans=other)]))
    results = score(ScoreConfig("mmmu", str(path), data_dir=str(tmp_path)))["tasks"]["mmmu"]
    assert results["metrics"]["accuracy"]["value"] == 1
    path.write_text(json.dumps([answers(1, "A", answer="A")]))
    with pytest.raises(ValueError, match=r"answer='B', but the file of answers says 'A'"):
        score(ScoreConfig("mmmu", str(path), data_dir=str(tmp_path)))
