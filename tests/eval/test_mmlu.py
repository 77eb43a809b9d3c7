"""MMLU: prompts as lm_eval and the authors write them, and which letter counts."""

import os

import pyarrow
import pyarrow.parquet
import pytest

from eval.tasks import get_task
from tests.eval.conftest import write_rows
from tests.eval.lm_eval_tasks import load, messages_of, text_of

SUBJECTS = ("abstract_algebra", "high_school_us_history", "virology")


def row(subject, number, answer=2):
    return {
        "question": f" Question {number} of {subject}?\nTwo lines. ",
        "subject": subject,
        "choices": [f"{subject} {number}", " a space", "x ", "y"],
        "answer": answer,
    }


TEST = [row(subject, number, number) for subject in SUBJECTS for number in range(2)]
DEV = [row(subject, 10 + number, number % 4) for number in range(6) for subject in SUBJECTS]


def documents(tmp_path, protocol, rows=TEST, dev=DEV):
    write_rows(tmp_path / "mmlu" / "test.jsonl", rows)
    write_rows(tmp_path / "mmlu" / "dev.jsonl", dev)
    return get_task("mmlu").load(protocol, str(tmp_path)).documents


def of_subject(name):
    return {
        split: [each for each in rows if each["subject"] == name] for split, rows in {"test": TEST, "dev": DEV}.items()
    }


def test_contexts_are_those_of_lm_eval(tmp_path, monkeypatch):
    tasks = load(monkeypatch, [f"mmlu_{subject}" for subject in SUBJECTS], of_subject)
    expected = [
        (task, each) for task in (tasks[f"mmlu_{subject}"] for subject in SUBJECTS) for each in task.test_docs()
    ]
    for document, (task, each) in zip(documents(tmp_path, "lm-eval"), expected, strict=True):
        context = text_of(task, each, 5)
        requests = task.construct_requests(each, context, metadata=("", 0, 1))
        asked = document.likelihood
        assert [(asked.context, choice) for choice in asked.choices] == [request.args for request in requests]
        assert (document.text, asked.gold) == (context, {each["answer"]})
        assert document.messages == messages_of(task, each, 5)
        assert document.group == each["subject"]


def test_every_subject_has_lm_evals_words():
    tasks = pytest.importorskip("lm_eval.tasks", reason="needs the extra eval")
    import yaml

    from eval.tasks.mmlu import _instruction

    folder = tasks.__path__[0] + "/mmlu/default"
    names = sorted(path for path in os.listdir(folder) if path.startswith("mmlu_"))
    assert len(names) == 57
    for name in names:
        with open(f"{folder}/{name}", encoding="utf-8") as file:
            config = yaml.safe_load(file)
        assert _instruction(config["dataset_name"], strip=True) == config["description"]


def test_official_context(tmp_path):
    rows = [{"question": "Why?", "subject": "world_religions", "choices": list("abcd"), "answer": 1}]
    dev = [row("world_religions", number) for number in range(5)]
    [document] = documents(tmp_path, "official", rows, dev)
    assert document.text.startswith(
        "The following are multiple choice questions (with answers) about  world religions.\n\n"
        " Question 0 of world_religions?\nTwo lines. \nA. world_religions 0\nB.  a space\nC. x \nD. y\nAnswer: C\n\n"
    )
    assert document.text.endswith("Answer: C\n\nWhy?\nA. a\nB. b\nC. c\nD. d\nAnswer:")
    assert document.likelihood.context == document.text
    assert (document.likelihood.choices, document.target) == ((" A", " B", " C", " D"), "B")


@pytest.mark.parametrize(
    ("protocol", "right", "wrong"),
    [
        ("card", ['{"answer": "B"}', "The answer is (B)."], ["(A)", "", "B or C"]),
        ("official", [" B", "B. because A", "\n\nB", "(B)"], ["The answer is B", "Best", "A", ""]),
        ("lm-eval", [" B\n\nNext", "b", "(B).", "\n\nB"], ["B. because", "The answer is B", "A", ""]),
    ],
)
def test_which_letter_counts(tmp_path, protocol, right, wrong):
    document = documents(tmp_path, protocol)[1]
    assert document.target == "B"
    assert [document.score(response).correct for response in right] == [True] * len(right)
    assert [document.score(response).correct for response in wrong] == [False] * len(wrong)


def test_subjects_may_have_folders_of_their_own(tmp_path):
    for subject in SUBJECTS:
        path = tmp_path / "mmlu" / subject / "test-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        rows = [
            {name: value for name, value in each.items() if name != "subject"} for each in of_subject(subject)["test"]
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    loaded = get_task("mmlu").load("card", str(tmp_path)).documents
    assert [document.group for document in loaded] == [each["subject"] for each in TEST]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["a", "b", "c"]}, r"test.jsonl:1: choices=\['a', 'b', 'c'\]; give 4 strings"),
        ({"answer": 4}, "test.jsonl:1: answer=4; give the place of the right choice, 0 to 3"),
        ({"answer": "B"}, "answer='B' is a str, expected int"),
        ({"subject": "cooking"}, "subject='cooking' has 0 solved examples in the dev split, but .* has 5"),
    ],
)
def test_wrong_rows(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        documents(tmp_path, "lm-eval", [TEST[0] | change])
