"""Forms are found on the whole sample, what is not read is named, and the user's function comes first."""

import functools
import json
import logging
import re
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen35_jax.runs import BaseIdentity
from tests.conftest import REPO
from tests.processing.conversations import ASK, assistant, user
from train.config import DataConfig, ModelSource, Recipe, Source, TrainConfig
from train.data import documents as documents_module
from train.data.documents import Documents
from train.data.forms import NAMES
from train.data.pipeline import make_batches
from train.record import RunRecord

CHAT = {"messages": [ASK, assistant("4")]}
SHARE = {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}
ALPACA = {"instruction": "2 + 2?", "input": "", "output": "4"}
TEXT = {"text": "words"}
PROMPT = {"prompt": "2 + 2?", "completion": "4"}


@pytest.fixture
def check(tokenizer, caplog):
    """Returns a function that checks a file's rows; it gives the documents and the lines that were logged."""

    def run(path, **settings):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            documents = Documents(DataConfig(path, 64, **settings), tokenizer)
            documents.check()
        return documents, [record.getMessage() for record in caplog.records]

    return run


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (CHAT, "messages"),
        (SHARE, "sharegpt"),
        (ALPACA, "alpaca"),
        (PROMPT, "prompt_completion"),
        (TEXT, "text"),
        (CHAT | TEXT, "messages"),
        (CHAT | PROMPT, "messages"),
        (CHAT | SHARE, "messages"),
        (ALPACA | TEXT, "alpaca"),
    ],
)
def test_the_form_is_found_and_logged(row, form, write_rows, check):
    documents, lines = check(write_rows([row] * 3))
    assert documents.identity()["forms"] == [form]
    assert any(line.endswith(f"data.jsonl: read as {form} (3 rows), by their keys") for line in lines)
    assert any(re.search(r"data.jsonl: 3 rows in 1 file: data.jsonl$", line) for line in lines)


def test_the_rows_of_the_documentation(write_rows, check):
    page = (REPO / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\{.*?\})` \|", page, flags=re.MULTILINE)
    assert [form for form, _ in rows] == list(NAMES)
    for form, row in rows:
        documents, _ = check(write_rows([row]))
        assert documents.identity()["forms"] == [form]


def test_forms_that_the_keys_tell_apart_may_be_mixed(write_rows, check):
    documents, lines = check(write_rows([CHAT, TEXT, SHARE, TEXT]))
    assert documents.identity()["forms"] == ["messages+sharegpt+text"]
    assert any("read as text (2 rows), messages (1 rows), sharegpt (1 rows)" in line for line in lines)


def test_forms_that_cannot_be_told_apart_are_an_error(write_rows, check):
    path = write_rows([TEXT, CHAT | TEXT, TEXT])
    with pytest.raises(ValueError) as caught:
        check(path)
    for words in (
        "2 rows text (first",
        "data.jsonl line 1)",
        "1 rows messages and text (first",
        "data.jsonl line 2)",
        "name the one to read with --data.form",
    ):
        assert words in str(caught.value)
    documents, lines = check(path, form="text")
    assert documents.identity()["forms"] == ["text"]
    assert any("read as text (3 rows), as data.form says" in line for line in lines)
    with pytest.raises(ValueError, match=r"line 1: the row lacks the keys of its form, messages: 'messages'; its keys"):
        check(path, form="messages")


def test_a_form_that_comes_later_than_the_sample(write_rows, check, monkeypatch):
    monkeypatch.setattr(documents_module, "_CHECKED_BYTES", 100)
    monkeypatch.setattr(documents_module, "_CHECKED_RUNS", 2)
    rows = [CHAT] * 20 + [TEXT] + [CHAT] * 20
    documents, _ = check(write_rows(rows))
    place = next(place for place in range(41) if documents.where(place).endswith("line 21"))
    [[error]] = documents.load([place])
    assert (error.reason, "of the form text, those checked before are messages" in str(error)) == ("other_form", True)


def test_what_is_not_read_is_named_once_with_its_count(write_rows, check, tmp_path):
    rows = [CHAT | {"id": n, "score": 1.0 if n else None} | ({"tools": []} if n else {}) for n in range(3)] + [
        {"messages": [ASK | {"speaker": "Ann", "weight": None}, assistant("4", logprobs=[1], speaker="Bob")]}
    ]
    _, lines = check(write_rows(rows))
    assert [line.split("data.jsonl: ")[1] for line in lines if "not read" in line] == [
        "keys of rows that are not read: id (3), score (2)",
        "keys of messages that are not read: speaker (2), logprobs (1)",
    ]
    pq.write_table(pa.Table.from_pylist([CHAT | {"sound": b"\xff"}] * 2), tmp_path / "a.parquet")
    _, lines = check(str(tmp_path / "a.parquet"))
    assert any(line.endswith("keys of rows that are not read: sound (2)") for line in lines)


def test_nothing_is_named_where_everything_is_read(write_rows, check):
    row = CHAT | {"tools": None, "system": "s", "chat_template_kwargs": {}}
    assert not [line for line in check(write_rows([row]))[1] if "not read" in line]


def from_question(row):
    if row["question"] == "skip":
        return None
    return {"messages": [user(row["question"]), assistant(row["answers"][0])]}


def of_wrong_type(row):
    return [row]


QUESTIONS = [{"question": "2 + 2?", "answers": ["4"]}, {"question": "skip"}, {"question": "3?", "answers": ["3"]}]


def test_a_function_makes_conversations(write_rows, check, tokenizer, tmp_path):
    documents, lines = check(write_rows(QUESTIONS), convert=from_question)
    assert documents.identity()["forms"][0].startswith("convert ")
    assert any("read as messages (2 rows), by data.convert" in line for line in lines)
    config = DataConfig(write_rows(QUESTIONS), 64, sequences_per_batch=1, epochs=1, convert=from_question)
    [batch] = (iterator := make_batches(config, tokenizer))
    assert batch["segment_ids"].max() == 2
    assert iterator.report()["dropped"] == {"left_out": 1}
    assert iterator.report()["unusable_rows"] == {"left_out": 1}
    pq.write_table(pa.Table.from_pylist(QUESTIONS), tmp_path / "a.parquet")
    [same] = make_batches(replace(config, path=str(tmp_path / "a.parquet")), tokenizer)
    assert (same["trained"].sum(), same["segment_ids"].max()) == (batch["trained"].sum(), 2)


@pytest.mark.parametrize(
    ("convert", "row", "words"),
    [
        (from_question, {"q": 1}, r"data.convert raised KeyError: 'question' \(.*test_reading.py line \d+\)"),
        (from_question, {"question": "a", "answers": []}, r"data.convert raised IndexError: list index out of range"),
        (from_question, '"text"', r"data.convert raised TypeError: string indices"),
        (of_wrong_type, {"q": 1}, r"data.convert returned a list, not an object such as \{'messages': \[\.\.\.\]\}"),
        (json.dumps, {"q": 1}, r"data.convert returned a string"),
    ],
)
def test_errors_of_the_function_are_one_line_with_the_row(convert, row, words, write_rows, check):
    path = write_rows([row])
    with pytest.raises(
        ValueError, match=rf"data.jsonl line 1: {words}.*; mend the row, or leave such rows out"
    ) as caught:
        check(path, convert=convert)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"no row of .* can be used: \{'convert': 1\}"):
        check(path, convert=convert, bad_rows="drop")


def test_what_the_function_returns_is_checked_as_any_row(write_rows, check):
    path = write_rows([{"question": "<|im_end|>", "answers": ["a"]}, {"question": "a", "answers": [3]}])
    with pytest.raises(ValueError, match=r"line 1: message 1 \(user\) spells the special token"):
        check(path, convert=from_question)
    with pytest.raises(ValueError, match=r"control_token.*wrong_type"):
        check(path, convert=from_question, bad_rows="drop")


def test_the_source_text_of_the_function_belongs_to_the_data(write_rows, tokenizer):
    def first(row):
        return CHAT

    def second(row):
        return CHAT  # of another source text

    path = write_rows([{"a": 1}])
    states = [
        make_batches(DataConfig(path, 64, convert=each), tokenizer).get_state() for each in (first, first, second)
    ]
    assert states[0]["identity"] == states[1]["identity"]
    with pytest.raises(ValueError, match=r"forms was \['convert \w+'\], is \['convert \w+'\]"):
        make_batches(DataConfig(path, 64, convert=second), tokenizer).set_state(states[0])


def test_the_run_record_says_where_the_function_is():
    recipe = Recipe(ModelSource("base"), DataConfig("a.jsonl", convert=from_question), steps=1)
    data = RunRecord(TrainConfig(recipe), BaseIdentity("model", {}), {}, True).to_json()["recipe"]["data"]
    assert data["convert"] == f"{__name__}.from_question"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"convert": functools.partial(from_question)}, r"data.convert=.*is no function; write `def convert\(row\)`"),
        ({"convert": eval("lambda row: row")}, r"the source text of data.convert=.* cannot be found"),
        ({"convert": from_question, "form": "text"}, r"data.form='text' and data.*convert: give one"),
        ({"form": "chat"}, r"data.form='chat' is unknown; choose one of messages, sharegpt"),
        ({"hub_files": "*a*", "split": "dev"}, r"give one or the other"),
    ],
)
def test_settings_of_reading(settings, words):
    with pytest.raises(ValueError, match=words):
        DataConfig("a.jsonl", **settings)
    with pytest.raises(ValueError, match=words.replace("data.", "data.sources.", 1) if "data." in words else words):
        Source("a.jsonl", **settings)


def test_settings_of_reading_need_a_path():
    with pytest.raises(
        ValueError, match=r"data.form is about data.path, which is not given; write it into the sources"
    ):
        DataConfig(sources=(Source("a.jsonl"),), form="text")
    config = DataConfig("a.jsonl", sources=(Source("b.jsonl"),), form="text", split="dev", subset="de")
    assert config.mixture == (Source("a.jsonl", form="text", split="dev", subset="de"),)
    assert vars(config.mixture[0]) == vars(Source("a.jsonl", form="text", split="dev", subset="de"))


def test_sources_of_several_forms_are_mixed(write_rows, tokenizer):
    sources = (
        Source(write_rows([SHARE], "a.jsonl")),
        Source(write_rows(QUESTIONS, "b.jsonl"), convert=from_question),
        Source(write_rows([TEXT], "c.jsonl"), form="text"),
    )
    documents = Documents(DataConfig(sources=sources, sequence_length=64), tokenizer)
    documents.check()
    assert [form.split()[0] for form in documents.identity()["forms"]] == ["sharegpt", "convert", "text"]
