"""GPQA Diamond: the order of its choices, its prompts, and which letter counts. The questions here are invented."""

import csv

import pytest

from eval.tasks import get_task
from eval.tasks.gpqa_diamond import ordered
from tests.eval.lm_eval_tasks import load, text_of

FIELDS = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
ROWS = [
    dict(zip(FIELDS, (f"How many {n}s?\nCount.", f" {n}", f"{n + 1} [title] x", "two  spaces", "no."), strict=True))
    | {"High-level domain": "Physics", "Record ID": f"rec{n}"}
    for n in range(30)
]


def documents(tmp_path, protocol, rows=None, name="gpqa_diamond.csv"):
    rows = ROWS if rows is None else rows
    path = tmp_path / "gpqa_diamond" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return get_task("gpqa_diamond").load(protocol, str(tmp_path)).documents


def test_the_order_depends_on_question_and_texts_alone(tmp_path):
    assert ordered("Q", ["a", "b", "c", "d"]) == ordered("Q", ["d", "c", "b", "a"]) == ["a", "c", "d", "b"]
    whole = documents(tmp_path, "card")
    part = documents(tmp_path, "card", ROWS[::-1][:3])
    assert [each.messages for each in part] == [each.messages for each in whole[:-4:-1]]
    counts = [sum(each.target == letter for each in whole) for letter in "ABCD"]
    assert sum(counts) == 30 and min(counts) >= 3


def test_prompts(tmp_path):
    [document] = documents(tmp_path, "official", ROWS[:1])
    question, choices = ROWS[0]["Question"], ordered(ROWS[0]["Question"], [ROWS[0][name] for name in FIELDS[1:]])
    listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    assert document.messages[0]["content"] == (
        f"What is the correct answer to this question: {question}\n\nChoices:\n{listed}\n\n"
        'Format your response as follows: "The correct answer is (insert answer here)"'
    )
    assert choices["ABCD".index(document.target)] == " 0"
    assert (document.id, document.group) == (0, "Physics")
    [card] = documents(tmp_path, "card", ROWS[:1])
    assert card.messages[0]["content"].startswith(f"{question}\n\nA. {choices[0]}\nB. ")
    assert card.messages[0]["content"].endswith('e.g., "answer": "C".')


def test_prompts_are_those_of_lm_eval_but_for_its_unseeded_order(tmp_path, monkeypatch):
    ours = documents(tmp_path, "lm-eval")
    orders = {
        frozenset(order): order
        for order in ([line[4:] for line in each.text.splitlines() if line[:1] == "("] for each in ours)
    }
    monkeypatch.setattr("random.shuffle", lambda choices: choices.sort(key=orders[frozenset(choices)].index))
    tasks = load(monkeypatch, ["gpqa_diamond_cot_zeroshot", "gpqa_diamond_zeroshot"], {"train": ROWS})
    for number in (0, 7):
        document = ours[number]
        generated, compared = tasks["gpqa_diamond_cot_zeroshot"], tasks["gpqa_diamond_zeroshot"]
        process = generated.config.process_docs
        [row] = process(generated.dataset["train"].select([number]))
        assert document.text == text_of(generated, row, 0)
        assert f"({document.target})" == row["answer"]
        requests = compared.construct_requests(row, text_of(compared, row, 0), metadata=("", 0, 1))
        asked = document.likelihood
        assert [(asked.context, choice) for choice in asked.choices] == [request.args for request in requests]
        assert asked.gold == {"ABCD".index(document.target)}


def test_extraction_is_that_of_lm_eval(tmp_path):
    extraction = pytest.importorskip("lm_eval.filters.extraction", reason="needs the extra eval")
    [document] = documents(tmp_path, "lm-eval", ROWS[:1])
    choices = [line[4:] for line in document.text.splitlines() if line[:1] == "("]
    flexible = extraction.MultiChoiceRegexFilter(
        r"(\([A-Z]\))", group_select=-1, ignore_case=True, ignore_punctuation=True
    )
    strict = extraction.RegexFilter(r"(?<=The answer is )(.*)(?=.)")
    for response in (
        "(A)", "(A) or (B)", "The answer is (C).", "The answer is (C)", "The answer is C.", "choice: D", "it is: \n B",
        "It must be no", "1 TITLE x!", "two  spaces", "E", "(E)", "", "The answer is ", "The answer is (D). \n(A)", "+",
    ):  # fmt: skip
        verdict = document.score(response)
        [[found]] = flexible.apply([[response]], [{"choices": choices}])
        assert (f"({verdict.prediction})" if verdict.parsed else None) == (found if found[:1] == "(" else None)
        [[found]] = strict.apply([[response]], [{}])
        expected = found.lower().strip("().") == document.target.lower()
        assert verdict.metrics["strict"] == [expected]


def test_the_authors_patterns(tmp_path):
    document = documents(tmp_path, "official")[0]
    for response, letter in [
        ("The correct answer is (C).", "C"),
        ("(A) is wrong. Answer: (B)", "B"),
        ("answer (D) but the answer is (x) (A)", "D"),
        ("The correct answer is C", None),
        ("", None),
    ]:
        assert document.score(response).prediction == letter


def test_equal_choices_are_all_right(tmp_path):
    row = ROWS[0] | {"Incorrect Answer 2": ROWS[0]["Correct Answer"]}
    [document] = documents(tmp_path, "official", [row])
    right = [letter for letter in "ABCD" if document.score(f"answer is ({letter})").correct]
    assert len(right) == 2 and len(document.likelihood.gold) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Correct Answer": " "}, r"gpqa_diamond.csv: row 1: Correct Answer=' ' is empty"),
        ({"Question": None}, None),
    ],
)
def test_wrong_rows(tmp_path, change, message):
    row = ROWS[0] | change
    if message is None:
        row = {name: value for name, value in row.items() if name != "Question"}
        message = "row 1: no field 'Question'; the row has"
    with pytest.raises(ValueError, match=message):
        documents(tmp_path, "card", [row])
