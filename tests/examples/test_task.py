"""The quickstart's task: right answers, a held-out set of its own, the same files each time, rows that can be used."""

import json
import re
from collections import Counter

import pytest

from eval.tasks import get_task
from examples.quickstart import task as tiny_task
from examples.quickstart.task import Problem
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.processing.tokenizer import Tokenizer
from train.config.data import DataConfig
from train.data.pipeline import make_batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    tiny_task.write_task(folder, num_texts=200, num_train=1500, num_test=300)
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_problem_reads_as_documented():
    problem = Problem(4, (8, 5, 3))
    assert problem.question in tiny_task.__doc__.replace(" " * 16, "")
    assert problem.reasoning in tiny_task.__doc__.replace(" " * 16, "")
    assert problem.answer == "0"


def test_the_reasoning_follows_the_question_and_leads_to_the_answer():
    for problem in tiny_task.make_problems(500, seed=3):
        shown = re.search(r"shows (\d)\.", problem.question)[1]
        turns = re.findall(r"^(\w+) \+(\d)$", problem.question, re.MULTILINE)
        lines = problem.reasoning.split("\n")
        assert len(lines) == len(turns)
        for (day, turn), line in zip(turns, lines, strict=True):
            total = str((int(shown) + int(turn)) % 10)
            assert line == f"{day} {shown}+{turn}={total}"
            shown = total
        assert problem.answer == shown


def test_every_length_is_held_out_and_no_question_is_trained(folder):
    asked = [row["messages"][0]["content"] for row in read(folder / "train.jsonl")]
    held_out = [row["question"] for row in read(folder / "qa" / "test.jsonl")]
    assert len(set(asked)) == len(asked) == 1500
    assert len(set(held_out)) == len(held_out) == 300
    assert not set(asked) & set(held_out)
    lengths = Counter(question.count("+") for question in held_out)
    assert sorted(lengths) == list(tiny_task.NUM_TURNS)
    assert min(lengths.values()) > 30


def test_both_modes_are_trained_on_the_right_answer(folder):
    replies = [row["messages"][1] for row in read(folder / "train.jsonl")]
    thinking = [reply for reply in replies if "reasoning_content" in reply]
    assert len(thinking) == 1125
    assert all(reply["reasoning_content"].endswith("=" + reply["content"]) for reply in thinking)
    assert all(re.fullmatch(r"\d", reply["content"]) for reply in replies)


def test_the_base_text_knows_sums_but_no_question(folder):
    texts = [row["text"] for row in read(folder / "base.jsonl")]
    sums = [match for text in texts for match in re.findall(r"(\d)\+(\d)=(\d)", text)]
    assert sums
    assert all((int(a) + int(b)) % 10 == int(c) for a, b, c in sums)
    for text in texts:
        assert "dial" not in text
        assert not ("=" in text and "day" in text)


def test_equal_seeds_give_equal_files(folder, tmp_path):
    tiny_task.write_task(tmp_path, num_texts=200, num_train=1500, num_test=300)
    for name in ("base.jsonl", "train.jsonl", "qa/test.jsonl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert tiny_task.make_problems(50, seed=0) != tiny_task.make_problems(50, seed=1)


@pytest.mark.parametrize("name", ["base.jsonl", "train.jsonl"])
def test_every_row_can_be_trained_on(folder, tmp_path, name):
    tokenizer = Tokenizer.from_pretrained(
        build_tiny_tokenizer(tiny_task.example_texts(), tmp_path / "tokenizer", vocab_size=512)
    )
    config = DataConfig(
        path=str(folder / name), sequence_length=128, sequences_per_batch=4, epochs=1, long_rows="error"
    )
    batches = make_batches(config, tokenizer)
    assert sum(int(batch["trained"].sum()) for batch in batches) > 1000
    report = batches.report()
    assert report["unusable_rows"] == {}
    assert report["dropped"] == {}
    assert report["documents"] == len(read(folder / name))


def test_the_evaluation_reads_the_held_out_set(folder):
    documents = get_task("qa").load("official", str(folder)).documents
    rows = read(folder / "qa" / "test.jsonl")
    assert [document.messages[0]["content"] for document in documents] == [row["question"] for row in rows]
    for document, row in zip(documents, rows, strict=True):
        assert document.score(row["answer"]).correct
        assert not document.score(str((int(row["answer"]) + 1) % 10)).correct
