"""Whatever a row holds: it trains as the template renders it, or it is refused with its place. Nothing else happens."""

import itertools
import json
import re
from functools import partial
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.processing.conversations import CLOCK, WEATHER, assistant, call, tool, user
from train.config.data import DataConfig
from train.data.documents import Documents
from train.data.pipeline import make_batches
from train.data.rows import Conversation, Reason, RowError

GOOD = {"messages": [user("2 + 2?"), assistant("4")]}
IGNORED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
quick = partial(settings, deadline=None, suppress_health_check=IGNORED, derandomize=True)

PIECES = ["a", " ", "\n", "é", "👍", "\ud83d", "\udc4d", "\0", "<think>", "</think>", "<tool_call>", "</tool_response>"]
PIECES += [
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|image_pad|>",
    "<tts_pad>",
    "{{ x }}",
    "{%",
    '{"a": 1}',
    "[",
    "None",
]
texts = st.one_of(st.text(max_size=8), st.lists(st.sampled_from(PIECES), max_size=4).map("".join))
numbers = st.one_of(st.integers(), st.floats(), st.just(10**400), st.booleans(), st.none())
values = st.recursive(
    st.one_of(texts, numbers),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "developer", "human", "gpt", "function_call", "critic"])
contents = st.one_of(
    texts,
    st.none(),
    st.lists(
        st.fixed_dictionaries({"type": st.sampled_from(["text", "thinking", "image", None])}, optional={"text": texts})
    ),
    values,
)
calls = st.lists(
    st.one_of(
        st.builds(
            lambda name, arguments: call(name) | {"function": {"name": name, "arguments": arguments}}, texts, values
        ),
        st.fixed_dictionaries({"name": texts}, optional={"arguments": st.dictionaries(texts, values, max_size=3)}),
        values,
    ),
    max_size=2,
)
FREE = {
    "value": contents,
    "reasoning_content": texts,
    "thinking": st.one_of(texts, st.none()),
    "tool_calls": st.one_of(calls, st.none()),
    "function_call": st.one_of(st.none(), values),
    "weight": st.sampled_from([0, 1, 0.0, True, None, 0.5, "0"]),
    "train": st.sampled_from([True, False, None]),
    "extra": values,
}
messages = st.fixed_dictionaries({"role": roles, "content": contents}, optional=FREE)
free_messages = st.one_of(
    messages, st.fixed_dictionaries({"from": roles}, optional={"content": contents} | FREE), values
)
# Mostly in an order that can be trained, so that the rows get far.
turns = st.one_of(
    st.lists(free_messages, max_size=5),
    st.lists(st.tuples(texts, texts), min_size=1, max_size=3).map(
        lambda pairs: list(itertools.chain(*([user(q), assistant(a)] for q, a in pairs)))
    ),
    st.builds(
        lambda q, found, result, a: [user(q), assistant(tool_calls=found), tool(result), assistant(a)],
        texts, calls, texts, texts,
    ),
)  # fmt: skip
tools = st.one_of(st.none(), st.just([WEATHER, CLOCK]), st.lists(values, max_size=2), values)
rows = st.one_of(
    st.fixed_dictionaries(
        {"messages": turns}, optional={"tools": tools, "system": texts, "functions": tools, "x": values}
    ),
    st.fixed_dictionaries({"conversations": turns}, optional={"tools": tools, "enable_thinking": st.booleans()}),
    st.fixed_dictionaries({"messages": turns.map(json.dumps)}, optional={"tools": tools.map(json.dumps)}),
    st.fixed_dictionaries({"prompt": st.one_of(texts, turns, values), "completion": st.one_of(texts, turns, values)}),
    st.fixed_dictionaries({"instruction": texts, "output": texts}, optional={"input": values, "history": values}),
    st.fixed_dictionaries({"text": st.one_of(texts, values)}),
    values,
)


@pytest.fixture
def load(tmp_path, tokenizer):
    """Returns a function that writes lines to a file, checks them, and gives what each becomes."""

    def run(lines, **options):
        (tmp_path / "data.jsonl").write_bytes(b"\n".join(lines))
        config = DataConfig(str(tmp_path / "data.jsonl"), 8192, bad_rows="drop", num_threads=1, epochs=1, **options)
        documents = Documents(config, tokenizer)
        unusable = documents.check()[1]
        places = {documents.where(place).rsplit(" ", 1)[1]: place for place in range(documents.epoch_length)}
        loaded = {int(line): documents.load([place])[0] for line, place in places.items()}
        refused = [each.reason for found in loaded.values() for each in found if isinstance(each, RowError)]
        # The check at the start finds everything but what is too long.
        assert sorted(unusable.elements()) == sorted(reason for reason in refused if reason != "too_long")
        assert set(refused) <= set(get_args(Reason))
        return documents, loaded

    return run


@quick(max_examples=100)
@given(row=rows, train_on=st.sampled_from(["all", "last", "each"]))
def test_a_row_trains_as_rendered_or_is_refused(row, train_on, load, tokenizer):
    documents, loaded = load([json.dumps(each).encode() for each in (GOOD, row, GOOD)], train_on=train_on, form=None)
    assert [each.trained.sum() for [each] in (loaded[1], loaded[3])] == [len(tokenizer.encode("4<|im_end|>"))] * 2
    event(" ".join(getattr(each, "reason", "trained") for each in loaded[2][:1]))
    if any(isinstance(each, RowError) for each in loaded[2]):
        assert all(
            "\n" not in str(each) or each.reason == "template" for each in loaded[2] if isinstance(each, RowError)
        )
        return
    content = documents._readers[0].read(row)
    if isinstance(content, str):
        ids = [token for example in loaded[2] for token in example.input_ids.tolist()]
        assert ids == [*tokenizer.encode(content), tokenizer.token_id("<|endoftext|>")]
        return
    for example in loaded[2]:
        check_example(content, example, tokenizer, whole=train_on != "each")


def check_example(content: Conversation, example, tokenizer, *, whole):
    ids, start, end = example.input_ids, *map(tokenizer.token_id, ("<|im_start|>", "<|im_end|>"))
    if whole:
        assert ids.tolist() == tokenizer.encode(tokenizer.chat_template.render(content.messages, tools=content.tools))
        kinds = [message["role"] for message in content.messages]
        groups = sum(role != "tool" or kinds[place - 1] != "tool" for place, role in enumerate(kinds))
        # A row forges no turn.
        assert (ids == start).sum() == (ids == end).sum() == groups + bool(content.tools and kinds[0] != "system")
    assert example.trained.any()
    # Every trained stretch ends with its turn, and none reaches into the next.
    stretches = np.flatnonzero(np.diff(np.concatenate([[0], example.trained, [0]])) == -1) - 1
    assert (ids[stretches] == end).all()
    assert not (ids[example.trained] == start).any()
    answers = [
        m["content"].split("</think>")[-1].strip()
        for m, on in zip(content.messages, content.trained, strict=True)
        if on
    ]
    words = re.sub(r"\s", "", tokenizer.decode(ids[example.trained].tolist(), skip_special_tokens=False))
    same = [
        re.sub(r"\s", "", tokenizer.decode(tokenizer.encode(answer), skip_special_tokens=False)) for answer in answers
    ]
    assert any(answer in words for answer in same)


@quick(max_examples=25)
@given(lines=st.lists(st.one_of(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), rows.map(
    lambda row: json.dumps(row).encode())), max_size=5))  # fmt: skip
def test_no_line_ends_a_run_under_drop(lines, tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([json.dumps(GOOD).encode(), *lines]))
    config = DataConfig(str(tmp_path / "a.jsonl"), 512, sequences_per_batch=1, epochs=1, bad_rows="drop", num_threads=1)
    try:
        iterator = make_batches(config, tokenizer)
    except ValueError as err:
        # The one thing that only the user can decide: which of several forms a row is of.
        assert "of several forms" in str(err)
        return
    assert sum(int(batch["trained"].sum()) for batch in iterator) >= len(tokenizer.encode("4<|im_end|>"))


@quick(max_examples=50)
@given(row=rows)
def test_under_error_the_place_is_named(row, tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(row) + "\n")
    documents = Documents(DataConfig(str(tmp_path / "a.jsonl"), 512), tokenizer)
    try:
        documents.check()
    except ValueError as err:
        assert "a.jsonl line 2" in str(err)


NAMES = st.text("abcä", min_size=1, max_size=3)
ARGUMENT = st.one_of(st.text('ab \n<>&"', max_size=4), st.none())
TURN = st.fixed_dictionaries(
    {"question": NAMES, "arguments": st.fixed_dictionaries({"city": ARGUMENT, "when": ARGUMENT})},
    optional={"required": st.lists(st.text("xyz", max_size=3), min_size=1, max_size=2), "reasoning": NAMES},
)


@quick(max_examples=40)
@given(drawn=st.lists(TURN, min_size=1, max_size=3))
def test_parquet_trains_the_same_text_as_jsonl(drawn, tmp_path, tokenizer):
    """Arguments that some calls lack, reasoning that some answers lack, tools that some rows lack."""
    lacking = [conversation_of(**each) for each in drawn]
    filled = [{"tools": None} | conversation_of(**each, fill=True) for each in drawn]
    (tmp_path / "lacking.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lacking))
    (tmp_path / "filled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in filled))
    pq.write_table(pa.Table.from_pylist(filled), tmp_path / "filled.parquet")
    trained = []
    for name in ("lacking.jsonl", "filled.jsonl", "filled.parquet"):
        documents = Documents(DataConfig(str(tmp_path / name), 4096, num_threads=1), tokenizer)
        documents.check()
        loaded = (documents.load([place])[0] for place in range(documents.epoch_length))
        trained.append(sorted((example.input_ids.tolist(), example.trained.tolist()) for [example] in loaded))
    assert trained[0] == trained[1] == trained[2]


def conversation_of(question, arguments, required=None, reasoning=None, *, fill=False):
    # A table has one order of keys for all its rows.
    given_arguments = {key: arguments[key] for key in sorted(arguments) if fill or arguments[key] is not None}
    answer = assistant("it is so") | ({"reasoning_content": reasoning} if fill or reasoning else {})
    turns = [user(question), assistant(tool_calls=[call("f", **given_arguments)]), tool("1"), answer]
    schema = {"name": "f", "parameters": {"type": "object", "required": required}}
    return {"messages": turns} | ({"tools": [schema]} if required else {})
