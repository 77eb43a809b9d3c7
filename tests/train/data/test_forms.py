"""A row in any form trains exactly as the OpenAI messages that it means, from any kind of file."""

import json
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen35_jax.processing import Tokenizer
from tests.conftest import shared_dir
from tests.processing.conversations import ASK, WEATHER, assistant, call, user
from tests.train.data.same import BRIEF, PLAIN, SAME, TOOLS, TURNS, chat, shares
from train.config.data import DataConfig
from train.data.documents import Documents
from train.data.pipeline import make_batches
from train.data.rows import RowError

CASES = [(kind, name) for kind, cases in SAME.items() for name in cases]


@pytest.fixture
def examples(tokenizer):
    """Returns a function that checks the rows of a file and gives, for each, its examples."""

    def load(path, tokenizer=tokenizer, **settings):
        documents = Documents(DataConfig(str(path), 4096, epochs=1, num_threads=1, **settings), tokenizer)
        documents.check()
        rows = {documents.where(place): place for place in range(documents.epoch_length)}
        ordered = sorted(rows, key=lambda where: int(where.rsplit(" ", 1)[1]))
        return [documents.load([rows[where]])[0] for where in ordered]

    return load


def assert_same(got, want):
    assert [len(each) for each in got] == [len(each) for each in want]
    for ours, theirs in zip(chain(*got), chain(*want), strict=True):
        assert not isinstance(ours, RowError), ours
        np.testing.assert_array_equal(ours.input_ids, theirs.input_ids)
        np.testing.assert_array_equal(ours.trained, theirs.trained)


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_row_trains_as_what_it_means(kind, name, write_rows, examples, tmp_path):
    row, meaning = SAME[kind][name]
    want = examples(write_rows([meaning], "meaning.jsonl"))
    assert want[0][0].trained.any()
    assert_same(examples(write_rows([row])), want)
    (tmp_path / "data.json").write_text(json.dumps([row]), encoding="utf-8")
    assert_same(examples(tmp_path / "data.json"), want)
    if not _arrow_cannot_hold(row):
        assert_same(examples(write_parquet(tmp_path / "data.parquet", [row])), want)


def _arrow_cannot_hold(row):
    """A column of Parquet has one type."""
    lists = [value for value in row.values() if isinstance(value, list)]
    contents = [{type(item.get("content")) for item in items if isinstance(item, dict)} for items in lists]
    return any({str, list} <= types for types in contents) or any({dict, str} <= {*map(type, items)} for items in lists)


def test_every_kind_has_siblings():
    assert all(len(cases) >= 5 for cases in SAME.values())


def test_the_forms_give_the_same_batches(write_rows, tokenizer, tmp_path):
    questions = [(f"What is {n} + {n}?", f"{2 * n}") for n in range(30)]
    forms = {
        "messages": [chat(user(q), assistant(a)) for q, a in questions],
        "parts": [chat(user([{"type": "text", "text": q}]), assistant([{"text": a}])) for q, a in questions],
        "sharegpt": [shares(("human", q), ("gpt", a)) for q, a in questions],
        "alpaca": [{"instruction": q, "input": "", "output": a} for q, a in questions],
        "strings": [{"prompt": q, "completion": a} for q, a in questions],
        "prompts": [{"prompt": [user(q)], "completion": [assistant(a)]} for q, a in questions],
        "text of messages": [{"messages": json.dumps([user(q), assistant(a)])} for q, a in questions],
        "converted": [{"q": q, "a": a} for q, a in questions],
    }
    batches = {}
    for name, rows in forms.items():
        parquet = write_parquet(tmp_path / f"{name}.parquet", rows)
        for path in (write_rows(rows, f"{name}.jsonl"), parquet):
            convert = _from_columns if name == "converted" else None
            config = DataConfig(str(path), 64, sequences_per_batch=2, epochs=1, convert=convert)
            batches[path] = list(make_batches(config, tokenizer))
    # Rows of Parquet are shuffled in windows, which gives them another order.
    for ending in (".jsonl", ".parquet"):
        first, *others = [each for path, each in batches.items() if str(path).endswith(ending)]
        assert len(first) > 2
        assert all(len(other) == len(first) for other in others)
        for want, *got in zip(first, *others, strict=True):
            for name, array in want.items():
                assert all(np.array_equal(each[name], array) for each in got)


def _from_columns(row):
    return chat(user(row["q"]), assistant(row["a"]))


def test_plain_text_trains_every_token(write_rows, examples, tmp_path):
    texts = [{"text": "words of a text"}, {"text": "and more"}]
    want = examples(write_rows(texts))
    assert_same(examples(write_parquet(tmp_path / "a.parquet", texts)), want)
    encoded = pa.table({"text": [row["text"].encode() for row in texts]})
    pq.write_table(encoded, tmp_path / "bytes.parquet")
    assert_same(examples(tmp_path / "bytes.parquet"), want)
    assert [each[0].trained.sum() for each in want] == [len(each[0]) - 1 for each in want]


ROWS = [TOOLS, BRIEF, TURNS, chat(user("Price?"), assistant(tool_calls=[call("quote", stock="X", at=None)]), tools=[])]


@pytest.mark.parametrize("tables", ["filled", "json", "text", "bytes"])
def test_columns_of_parquet(tables, write_rows, examples, tmp_path):
    """Tables fill objects up with nulls, or hold JSON: by type, as text, or as bytes."""
    rows = [{"messages": row["messages"], "tools": row.get("tools")} for row in ROWS]
    want = examples(write_rows(rows))
    columns = {key: [row[key] for row in rows] for key in ("messages", "tools")}
    if tables == "filled":
        table = _filled_up(rows)
    else:
        texts = {
            key: [None if value is None else json.dumps(value) for value in values] for key, values in columns.items()
        }
        kind = {"json": pa.string(), "text": pa.string(), "bytes": pa.binary()}[tables]
        arrays = {
            key: pa.array([t and (t.encode() if tables == "bytes" else t) for t in v], kind) for key, v in texts.items()
        }
        if tables == "json":
            arrays = {key: pa.ExtensionArray.from_storage(pa.json_(), array) for key, array in arrays.items()}
        table = pa.table(arrays)
    pq.write_table(table, tmp_path / "data.parquet")
    assert_same(examples(tmp_path / "data.parquet"), want)


def _filled_up(rows):
    """Gives every object of a column the keys of all, as `datasets` and others do."""
    table = pa.Table.from_pylist(rows)
    assert "None" in str(table.to_pylist()), "nothing was filled up"
    return table


def test_json_inside_objects(write_rows, examples, tmp_path):
    """`datasets` 5 writes each message, and what differs inside a tool, as JSON."""
    rows = [{"messages": row["messages"], "tools": row.get("tools") or []} for row in ROWS[:2]]
    tools = [tool["function"] for row in rows for tool in row["tools"]]
    functions = pa.StructArray.from_arrays(
        [pa.array([tool[key] for tool in tools]) for key in ("name", "description")]
        + [_json(tool["parameters"] for tool in tools)],
        ["name", "description", "parameters"],
    )
    kinds = pa.array(["function"] * len(tools))
    table = {
        "messages": _lists([len(row["messages"]) for row in rows], _json(m for row in rows for m in row["messages"])),
        "tools": _lists(
            [len(row["tools"]) for row in rows],
            pa.StructArray.from_arrays([kinds, functions], ["type", "function"]),
        ),
    }
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    assert_same(examples(tmp_path / "data.parquet"), examples(write_rows(rows)))


def _json(values):
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array([*map(json.dumps, values)], pa.string()))


def _lists(lengths, items):
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), items)


REFUSED = {
    "two systems": (chat(*BRIEF["messages"], system="Be long."), "ambiguous", "a system prompt in a column"),
    "two columns of tools": (chat(*PLAIN["messages"], tools=[WEATHER], functions=[{}]), "ambiguous", "keep one"),
    "two system columns": (chat(*PLAIN["messages"], system="a", system_prompt="b"), "ambiguous", "keep one"),
    "thinking without words": (
        chat(*PLAIN["messages"], chat_template_kwargs={"enable_thinking": True}),
        "template_kwargs",
        "enable_thinking=True, but its last answer is written without reasoning",
    ),
    "words without thinking": (chat(*TURNS["messages"], enable_thinking=False), "template_kwargs", "with reasoning"),
    "another setting": (
        chat(*PLAIN["messages"], chat_template_kwargs={"add_vision_id": True}),
        "template_kwargs",
        "add_vision_id, which training cannot honour; remove it",
    ),
    "settings as list": (chat(*PLAIN["messages"], chat_template_kwargs=[1]), "wrong_type", "is a list"),
    "half a weight": (chat(ASK, assistant("4", weight=0.5)), "weight", r"weight=0\.5; a turn is trained or it is not"),
    "a weight as text": (chat(ASK, assistant("4", loss="0")), "weight", "loss='0'"),
    "a weight above one": (chat(ASK, assistant("4", loss_mask=2)), "weight", "repeat rows"),
    "the user's turn on": (chat(ASK | {"train": True}, assistant("4")), "weight", "only turns of the assistant train"),
    "parts of a turn": (chat(ASK, assistant("4", train_detail=[{"begin_offset": 0}])), "weight", "'train_detail'"),
    "all off": (chat(ASK, assistant("4", weight=0)), "untrained", "marked as not to be trained"),
    "history of texts": ({"instruction": "a", "output": "b", "history": ["q"]}, "wrong_type", "list of pairs"),
    "number as output": ({"instruction": "a", "output": 3}, "wrong_type", "'output' is the number 3"),
    "prompt as number": ({"prompt": 3, "completion": "b"}, "wrong_type", "'prompt' is the number 3"),
    "empty completion": ({"prompt": "a", "completion": ""}, "empty", "neither content nor"),
    "no call in function_call": (shares(("human", "a"), ("function_call", "I call.")), "invalid_json", "the call of"),
    "a system column of a number": (chat(*PLAIN["messages"], system=1), "wrong_type", "'system' is the number 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_is_refused_with_its_place_or_counted(name, write_rows, examples):
    row, reason, words = REFUSED[name]
    path = write_rows([PLAIN, row, PLAIN])
    with pytest.raises(ValueError, match=rf"data.jsonl line 2: .*{words}.*--data.bad-rows drop"):
        examples(path)
    good, bad, again = examples(path, bad_rows="drop")
    assert_same([again], [good])
    assert [error.reason for error in bad] == [reason]


def test_tokens_that_the_user_added_train(write_rows, examples, tiny_tokenizer_with, tokenizer):
    added = tiny_tokenizer_with("<|new_0|>", "<|new_1|>")
    path = write_rows([chat(user("a"), assistant("<|new_0|>yes<|new_1|>"))])
    [[example]] = examples(path, added)
    kept = example.input_ids[example.trained].tolist()
    assert (kept[0], kept[-2]) == (added.token_id("<|new_0|>"), added.token_id("<|new_1|>"))
    assert "<|new_0|>" in added.special_tokens
    assert "<|new_0|>" not in added.control_tokens
    assert set(tokenizer.control_tokens) == set(added.control_tokens) > {"<|im_start|>", "<|im_end|>", "<|image_pad|>"}


@pytest.fixture
def tiny_tokenizer_with(tokenizer):
    import tokenizers

    def add(*tokens):
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in tokens])
        return Tokenizer(backend, tokenizer.chat_template)

    return add


@pytest.mark.skipif(shared_dir() is None, reason="the cases are not beside the checkout; their siblings are above")
@pytest.mark.parametrize(
    ("file", "unusable"),
    [
        ("args_string.jsonl", {}),
        ("content_null_image.jsonl", {}),
        ("crlf_blank.jsonl", {}),
        ("developer.jsonl", {}),
        ("ds_default.jsonl", {}),
        ("ds_default.parquet", {}),
        ("ds_use_json.parquet", {}),
        ("newtok.jsonl", {}),
        ("nulls.jsonl", {}),
        ("other_columns.jsonl", {"template_kwargs": 1}),
        ("surrogate.jsonl", {"surrogate": 1}),
        ("think_and_call.jsonl", {}),
        ("tools_string.jsonl", {}),
        ("weights.jsonl", {}),
    ],
)
def test_cases_from_public_reports(file, unusable, tokenizer, examples):
    path = str(shared_dir() / "cases" / "rows" / file)
    documents = Documents(DataConfig(path, 4096, bad_rows="drop"), tokenizer)
    assert documents.check()[1] == unusable
    loaded = examples(path, bad_rows="drop")
    texts = [
        tokenizer.decode(e.input_ids.tolist(), skip_special_tokens=False) for [e] in loaded if hasattr(e, "trained")
    ]
    assert not any("None" in text or "null" in text for text in texts)
    if file.startswith("ds_"):
        assert_same(loaded, examples(shared_dir() / "cases" / "rows" / "ds_default.jsonl"))
