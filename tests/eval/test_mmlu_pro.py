"""MMLU-Pro: prompts as lm_eval and the authors write them, and stored answers as they score them."""

import json
import random
import re
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.score import main
from eval.tasks import get_task
from eval.tasks.mmlu_pro import extract
from tests.conftest import PUBLISHED, shared_dir
from tests.eval.conftest import write_rows
from tests.eval.lm_eval_tasks import load, messages_of, text_of
from tests.linear_time import assert_linear

CATEGORIES = (
    "biology", "business", "chemistry", "computer science", "economics", "engineering", "health", "history", "law",
    "math", "other", "philosophy", "physics", "psychology",
)  # fmt: skip
MODELS = {"Meta-Llama-3-70B": ("generated_text", "lm-eval"), "jamba-1.5-large": ("model_outputs", "official")}


def sample():
    """Answers of both models to some questions: questions of MMLU-Pro (MIT), answers of its authors' repository."""
    lines = (PUBLISHED / "mmlu_pro_answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def validation_rows():
    """Five invented solved examples of every category, and one more that no prompt has."""
    return [
        {
            "question_id": 100 * place + number,
            "question": f"What is {number} of {category}?\nSay it. ",
            "options": [f" {category} {option} " for option in range(3 + number)],
            "answer": "C",
            "answer_index": 2,
            "cot_content": f"A: Let's think step by step. It is {number}.\nA: no. The answer is (C).",
            "category": category,
            "src": "invented",
        }
        for number in range(6)
        for place, category in enumerate(CATEGORIES)
    ]


def rows_of(answers):
    return [
        {name: row[name] for name in ("question_id", "question", "options", "answer", "category")} for row in answers
    ]


def questions():
    """A question of each category with options that need stripping."""
    rows = rows_of(sample())
    return [
        rows[place] | {"question_id": place, "category": category, "options": [" first ", *rows[place]["options"][1:]]}
        for place, category in enumerate(CATEGORIES)
    ]


def documents(tmp_path, protocol, rows, validation=None):
    write_rows(tmp_path / "mmlu_pro" / "test.jsonl", rows)
    write_rows(tmp_path / "mmlu_pro" / "validation.jsonl", validation_rows() if validation is None else validation)
    return get_task("mmlu_pro").load(protocol, str(tmp_path)).documents


def test_prompts_are_those_of_lm_eval(tmp_path, monkeypatch):
    rows = questions()
    names = {category: f"mmlu_pro_{category.replace(' ', '_')}" for category in CATEGORIES}
    full = [row | {"cot_content": "", "answer_index": 0, "src": ""} for row in rows]
    tasks = load(monkeypatch, names.values(), {"test": full, "validation": validation_rows()})
    assert tasks[names["law"]].config.num_fewshot == 5
    for document, category in zip(documents(tmp_path, "lm-eval", rows), CATEGORIES, strict=True):
        task = tasks[names[category]]
        [row] = task.test_docs()
        assert document.text == text_of(task, row, 5)
        assert document.messages == messages_of(task, row, 5)
        assert document.group == category


def test_choices_are_those_of_lm_evals_leaderboard(tmp_path, monkeypatch):
    rows = questions()
    full = [row | {"cot_content": "", "answer_index": 0, "src": ""} for row in rows]
    task = load(monkeypatch, ["leaderboard_mmlu_pro"], {"test": full, "validation": validation_rows()})[
        "leaderboard_mmlu_pro"
    ]
    for document, row in zip(documents(tmp_path, "lm-eval", rows), task.test_docs(), strict=True):
        asked = document.likelihood
        requests = task.construct_requests(row, text_of(task, row, 5), metadata=("", 0, 1))
        assert [(asked.context, choice) for choice in asked.choices] == [request.args for request in requests]
        assert asked.gold == {asked.labels.index(row["answer"])}


def test_official_prompt(tmp_path):
    row = {"question_id": 7, "question": "Why? ", "options": [" a", "b "], "answer": "B", "category": "law"}
    shots = [
        {"question": f"Q{n}", "options": ["x ", "y"], "answer": "A", "category": "law", "question_id": n,
         "cot_content": f"A: Let's think step by step. {n}. The answer is (A)."}
        for n in range(5)
    ]  # fmt: skip
    [document] = documents(tmp_path, "official", [row], shots)
    start = (
        'The following are multiple choice questions (with answers) about law. Think step by step and then finish '
        'your answer with "the answer is (X)" where X is the correct letter choice.\n'
        "Question:\nQ0\nOptions:\nA. x \nB. y\nAnswer: Let's think step by step. 0. The answer is (A).\n\n"
        "Question:\nQ1\n"
    )  # fmt: skip
    assert document.text.startswith(start)
    assert document.text.endswith(
        "4. The answer is (A).\n\nQuestion:\nWhy? \nOptions:\nA.  a\nB. b \nAnswer: Let's think step by step."
    )
    assert document.messages == [{"role": "user", "content": document.text}]
    assert (document.id, document.target) == (7, "B")


def test_card_prompt_and_answer(tmp_path):
    row = {"question_id": 7, "question": "Why?", "options": ["a", "b"], "answer": "B", "category": "law"}
    [document] = documents(tmp_path, "card", [row])
    assert document.messages == [
        {
            "role": "user",
            "content": "Why?\n\nA. a\nB. b\n\nPlease show your choice in the `answer` field with only the choice "
            'letter, e.g., "answer": "C".',
        }
    ]
    assert document.score('the answer is (A)? No. {"answer": "B"}').correct
    assert not document.score("the answer is (C)").parsed
    assert "accuracy_random_fallback" not in document.score("").metrics


def chain(text):
    """The authors' three patterns as they wrote them; the second and third take quadratic time."""
    for pattern, flags in ((r"answer is \(?([A-J])\)?", 0), (r".*[aA]nswer:\s*([A-J])", 0)):
        if found := re.search(pattern, text, flags):
            return found[1]
    found = re.search(r"\b[A-J]\b(?!.*\b[A-J]\b)", text, re.DOTALL)
    return found and found[0]


PIECES = ["answer is ", "answer is (", "Answer:", "answer: ", "A", "B", "J", "K", " ", "\n", "\r", ".", "é", "x", "_"]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(max_size=50))
def test_the_chain_finds_what_the_authors_patterns_find(text):
    assert extract(text) == chain(text)


def test_many_texts_against_the_authors_patterns():
    draw = random.Random(0)
    found = set()
    for _ in range(20_000):
        text = "".join(draw.choices(PIECES[2:], k=draw.randrange(20)))
        assert extract(text) == chain(text), text
        found.add(extract(text))
    assert found == {"A", "B", "J", None}


@pytest.mark.parametrize("unit", ["A ", "answer", "answer: \n", "Answer:", "x", "answer is ("])
def test_the_chain_takes_linear_time(unit):
    assert_linear(extract, unit)


def test_unparsed_responses_gain_what_a_guess_would(tmp_path):
    row = {"question_id": 7, "question": "Why?", "options": list("abcde"), "answer": "B", "category": "law"}
    [document] = documents(tmp_path, "official", [row])
    for response, accuracy, fallback in (("none", 0, 0.2), ("B", 1, 1), ("C", 0, 0)):
        verdict = document.score(response)
        assert verdict.metrics == {"accuracy": [accuracy], "accuracy_random_fallback": [fallback]}
        assert verdict.parsed is (response != "none")
    [document] = documents(tmp_path, "lm-eval", [row])
    assert document.score("Answer: B").prediction is None
    assert document.score("the answer is (C). the answer is (B)").prediction == "C"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": []}, r"test.jsonl:1: options=\[\]; give 1 to 10 strings"),
        ({"options": list("abcdefghijk")}, "give 1 to 10 strings"),
        ({"options": ["a", 2]}, "give 1 to 10 strings"),
        ({"answer": "C"}, "test.jsonl:1: answer='C'; the letters of its 2 options are AB"),
        ({"answer": "AB"}, "answer='AB'; the letters"),
        ({"category": "cooking"}, "category='cooking' has 0 solved examples in the validation split, but .* has 5"),
        ({"question": None}, "question=None is a NoneType, expected str"),
    ],
)
def test_wrong_rows(tmp_path, change, message):
    row = {"question_id": 7, "question": "Why?", "options": ["a", "b"], "answer": "B", "category": "law"}
    with pytest.raises(ValueError, match=message):
        documents(tmp_path, "official", [row | change])


def test_asking_needs_the_examples(tmp_path):
    write_rows(tmp_path / "mmlu_pro" / "test.jsonl", questions())
    with pytest.raises(
        ValueError,
        match=r"show 5 solved examples, which the split validation holds: .* mmlu_pro at .*validation\.jsonl",
    ):
        get_task("mmlu_pro").load("official", str(tmp_path))


def score_stored(tmp_path, answers, protocol):
    """Scores stored answers as a user does, and returns the results and the samples by id."""
    write_rows(tmp_path / "data" / "mmlu_pro" / "test.jsonl", rows_of(answers))
    responses = write_rows(
        tmp_path / "responses.jsonl", [{"id": row["question_id"], "response": row["response"]} for row in answers]
    )
    out = tmp_path / "out"
    main([
        "--task", "mmlu_pro", "--protocol", protocol, "--responses", str(responses),
        "--data-dir", str(tmp_path / "data"), "--out", str(out),
    ])  # fmt: skip
    samples = map(json.loads, (out / "samples" / "mmlu_pro.jsonl").read_text(encoding="utf-8").split("\n")[:-1])
    return json.loads((out / "results.json").read_text())["tasks"]["mmlu_pro"], {each["id"]: each for each in samples}


@pytest.mark.parametrize("model", MODELS)
def test_predictions_of_some_stored_answers(tmp_path, model):
    answers = [row for row in sample() if row["model"] == model]
    results, samples = score_stored(tmp_path, answers, MODELS[model][1])
    assert [samples[row["question_id"]]["prediction"] for row in answers] == [row["pred"] for row in answers]
    assert results["outcomes"]["unparsed"] == sum(row["pred"] is None for row in answers) > 0
    assert 0 < results["metrics"]["accuracy"]["value"] < 1


@pytest.mark.skipif(shared_dir() is None, reason="the stored answers are not beside the checkout")
@pytest.mark.parametrize(
    ("model", "accuracy", "unparsed"), [("Meta-Llama-3-70B", 6258, 814), ("jamba-1.5-large", 5951, 56)]
)
def test_every_stored_answer(tmp_path, model, accuracy, unparsed):
    key, protocol = MODELS[model]
    with zipfile.ZipFile(shared_dir() / "data" / "mmlu_pro" / f"{model}.zip") as archive:
        rows = json.loads(archive.read(archive.namelist()[0]))
    results, samples = score_stored(tmp_path, [row | {"response": row[key]} for row in rows], protocol)
    different = [row["question_id"] for row in rows if samples[row["question_id"]]["prediction"] != row["pred"]]
    assert (len(rows), different) == (12_032, [])
    assert results["metrics"]["accuracy"]["value"] == accuracy / 12_032
    assert results["outcomes"]["unparsed"] == unparsed
    if protocol == "official":
        gain = sum(1 / len(row["options"]) for row in rows if row["pred"] is None)
        expected = (accuracy + gain) / 12_032
        assert results["metrics"]["accuracy_random_fallback"]["value"] == pytest.approx(expected, abs=1e-12)
