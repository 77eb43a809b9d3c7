"""RealWorldQA and MMBench: prompts, VLMEvalKit's rule, and questions that count if every order is right."""

import json

import pytest

from eval.compare import compare
from eval.score import ScoreConfig, score
from eval.scorers.options import inferred_option, videomme_letter
from eval.summary import summarize
from eval.tasks import get_task
from tests.eval.conftest import write_rows
from tests.eval.vision.pictures import base64_of, load, png, text_of, write_parquet, write_tsv

OPTIONS = {"A": "Left", "B": "Straight ahead", "C": "Right"}
PICTURE = base64_of(png(size=(40, 40)))


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("**B.**", "B"), ("*B*", "B"), ("The answer is B.", "B"), ("A or B", None),
        ("B is what I would say after some thought", None), ("It goes straight ahead", "B"), ("Z", "Z"),
        ("left and right", None), ("Failed to obtain answer via API", None), ("Cannot determine the answer", "Z"),
        ("straight ahead" + " indeed" * 20, None), ("", None), ("so it turns to the right", "C"),
    ],
)  # fmt: skip
def test_vlmevalkits_rule(response, letter):
    assert inferred_option(response, OPTIONS) == letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("The best answer is B", "B"),
        ("Best answer: C", "B"),
        ("Definitely C", "D"),
        ("all of it", None),
        ("Answer: C", "A"),
        ("", None),
        ("The correct answer is (D).", "D"),
    ],
)
def test_video_mmes_rule(response, letter):
    assert videomme_letter(response) == letter


def hub_row(**changes):
    question = "Which way?\n\nA. Left\nB. Right\nPlease answer directly with only the letter of the correct option."
    return {"image": {"bytes": png(), "path": None}, "question": question, "answer": "B"} | changes


def test_realworldqa_as_xai_writes_it(tmp_path):
    counted = hub_row(question="How many? Please answer directly with a single word or number.", answer="Two")
    write_parquet(tmp_path / "realworldqa" / "test.parquet", [hub_row(), counted])
    for protocol in ("card", "official"):
        choice, count = load("realworldqa", tmp_path, protocol)
        assert text_of(choice) == hub_row()["question"] and choice.id == 0
        assert choice.score("B").correct and choice.score("It is (B).").correct and not choice.score("A").correct
        assert count.score("two.").correct and not count.score("three").correct and count.judging is None
    official = load("realworldqa", tmp_path, "official")[0]
    assert not official.score("to the right").parsed and load("realworldqa", tmp_path)[0].score("Right").correct


def test_realworldqa_of_vlmevalkit(tmp_path):
    rows = [
        {"index": "0", "image": PICTURE, "question": "Which way?", "A": "Left", "B": "Right", "C": "", "answer": "B"}
    ]
    write_tsv(tmp_path / "realworldqa" / "RealWorldQA.tsv", rows)
    (card,) = load("realworldqa", tmp_path)
    assert text_of(card) == (
        "Question: Which way?\nOptions:\nA. Left\nB. Right\nPlease select the correct answer from the options above."
    )
    (official,) = load("realworldqa", tmp_path, "official")
    assert text_of(official).startswith("Which way?\n\nA. Left\nB. Right\nPlease answer directly with only the letter")
    rows[0]["answer"] = "C"
    write_tsv(tmp_path / "realworldqa" / "RealWorldQA.tsv", rows)
    with pytest.raises(ValueError, match="answer='C'; it is a letter of the options"):
        load("realworldqa", tmp_path)


def orders(question, options, right, image=None):
    """The rows of a question: its options in every order of a circle."""
    rows = []
    for turn in range(len(options)):
        turned = options[turn:] + options[:turn]
        letters = dict(zip("ABCD", turned, strict=False))
        target = next(letter for letter, option in letters.items() if option == right)
        rows.append({
            "index": str(question + turn * 1_000_000), "question": f"What is {question}?", "hint": "Look.", **letters,
            "answer": target, "category": "c", "l2-category": "reasoning", "split": "dev",
            "image": image if turn == 0 else str(question),
        })  # fmt: skip
    return rows


@pytest.fixture
def mmbench(tmp_path):
    rows = [*orders(1, ["x", "y", "z"], "y", PICTURE), *orders(2, ["u", "v"], "u", PICTURE)]
    # In the file the first orders stand before all others.
    rows.sort(key=lambda row: int(row["index"]) // 1_000_000)
    write_tsv(tmp_path / "mmbench" / "MMBench_DEV_EN_V11.tsv", rows)
    return tmp_path


def test_the_orders_of_a_question_stand_together(mmbench):
    documents = load("mmbench", mmbench)
    assert [document.id for document in documents] == [1, 1_000_001, 2_000_001, 2, 1_000_002]
    assert documents[1].circle == ("1", 3) and documents[3].circle == ("2", 2)
    assert text_of(documents[1]) == (
        "Hint: Look.\nQuestion: What is 1?\nOptions:\nA. y\nB. z\nC. x\n"
        "Please select the correct answer from the options above."
    )
    assert [document.group for document in documents] == ["reasoning"] * 5
    assert documents[0].score("B").metrics == {"rotation": [1.0], "vanilla": [1.0]}
    assert documents[1].score("B").metrics == {"rotation": [0.0]}


def stored(mmbench, answers):
    path = write_rows(mmbench / "answers.jsonl", [{"id": key, "response": text} for key, text in answers.items()])
    return score(ScoreConfig("mmbench", str(path), data_dir=str(mmbench), out=str(mmbench / "out")))


def test_a_limit_asks_every_order_of_its_last_question(mmbench):
    loaded = {limit: get_task("mmbench").load("card", str(mmbench), limit=limit) for limit in (1, 3, 4, None)}
    assert {limit: len(each.documents) for limit, each in loaded.items()} == {1: 3, 3: 3, 4: 5, None: 5}
    digests = [each.digest for each in loaded.values()]
    assert digests[0] == digests[1] != digests[2] == digests[3]


def test_a_question_counts_if_every_order_is_right(mmbench):
    results = stored(mmbench, {1: "B", 1_000_001: "A", 2_000_001: "B", 2: "A", 1_000_002: "B"})
    metrics = results["tasks"]["mmbench"]["metrics"]
    assert (metrics["circular"]["value"], metrics["circular"]["n"]) == (0.5, 2)
    assert (metrics["vanilla"]["value"], metrics["vanilla"]["n"]) == (1.0, 2)
    assert (metrics["rotation"]["value"], metrics["rotation"]["n"]) == (0.8, 5)
    assert results["tasks"]["mmbench"]["headline"] == "circular"
    assert results["tasks"]["mmbench"]["groups"]["reasoning"]["value"] == 0.5


def test_a_question_that_lacks_an_order_does_not_count(mmbench):
    metrics = stored(mmbench, {1: "B", 1_000_001: "A", 2: "A", 1_000_002: "B"})["tasks"]["mmbench"]["metrics"]
    assert (metrics["circular"]["value"], metrics["circular"]["n"]) == (1.0, 1)


def test_responses_without_any_whole_question_are_refused(mmbench):
    with pytest.raises(ValueError, match="no question has a response to every order of its options"):
        stored(mmbench, {1: "B", 1_000_001: "A", 2: "A"})


def sample(name, place, correct, outcome="ok", repeat=0):
    return {
        "id": f"{name}{place}", "circle": [name, 2], "repeat": repeat, "correct": correct, "outcome": outcome,
        "metrics": {"rotation": [float(correct)]}, "group": None, "finish_reason": "stop", "num_tokens": 10 * place + 5,
    }  # fmt: skip


def test_cut_responses_and_budgets_count_for_the_whole_question():
    samples = [sample("a", 0, True), sample("a", 1, True, "truncated"), sample("b", 0, True), sample("b", 1, True)]
    told = summarize(samples, headline="circular", max_new_tokens=20)
    assert (told["metrics"]["circular"]["value"], told["cut_as_wrong"]["circular"]["value"]) == (1.0, 0.5)
    assert told["finished"]["circular"]["n"] == 1
    scores = {point["budget"]: point["value"] for point in told["curve"]}
    assert scores[20] == 0.5 and all(value == 0 for budget, value in scores.items() if budget < 15)


def test_repeats_of_a_question_are_circles_of_their_own():
    samples = [
        sample("a", place, correct, repeat=repeat) for repeat, correct in ((0, True), (1, False)) for place in (0, 1)
    ]
    told = summarize(samples, headline="circular")
    assert (told["metrics"]["circular"]["value"], told["metrics"]["circular"]["n"]) == (0.5, 1)
    assert told["pass_at"]["2"]["value"] == 1.0


def test_two_evaluations_are_compared_by_whole_questions(mmbench):
    right = {1: "B", 1_000_001: "A", 2_000_001: "C", 2: "A", 1_000_002: "B"}
    directories = []
    for name, answers in (("a", right), ("b", right | {1_000_001: "C"})):
        path = write_rows(mmbench / f"{name}.jsonl", [{"id": key, "response": text} for key, text in answers.items()])
        directories.append(str(mmbench / f"out_{name}"))
        score(ScoreConfig("mmbench", str(path), data_dir=str(mmbench), out=directories[-1]))
    figures = compare(*directories)["tasks"]["mmbench"]
    assert figures["metrics"]["circular"]["difference"]["value"] == -0.5
    assert figures["flips"]["right_in"] == {"a": ["1"], "b": []}


def test_a_letter_that_is_no_option_is_refused(tmp_path):
    rows = orders(1, ["x", "y"], "x", PICTURE)
    rows[1]["answer"] = "C"
    write_tsv(tmp_path / "mmbench" / "MMBench_DEV_EN_V11.tsv", rows)
    with pytest.raises(ValueError, match="answer='C' is the letter of none of the options"):
        load("mmbench", tmp_path)
    (tmp_path / "mmbench" / "MMBench_DEV_EN_V11.tsv").write_text("index\tanswer\nx1\tA\n")
    with pytest.raises(ValueError, match="index='x1' is no whole number"):
        load("mmbench", tmp_path)


def test_vlmevalkits_files_of_answers_are_read(mmbench):
    path = mmbench / "model_MMBench.json"
    path.write_text(json.dumps([{"index": 2, "prediction": "A"}, {"index": 1_000_002, "prediction": "(B)"}]))
    told = score(ScoreConfig("mmbench", str(path), data_dir=str(mmbench)))["tasks"]["mmbench"]
    assert (told["metrics"]["circular"]["value"], told["missing"]) == (1.0, 3)
