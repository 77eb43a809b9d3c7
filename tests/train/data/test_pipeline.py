"""Batches: what is in them, their order, and that any interruption continues exactly."""

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train.config.data import DataConfig
from train.data.pipeline import make_batches

LENGTH = 96


def conversation(number, size):
    return {
        "messages": [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": f"{number} " * size},
        ]
    }


@pytest.fixture
def path(write_rows):
    rows = [conversation(100 + i, 1 + i % 13) for i in range(60)]
    rows[7] = {"text": "The answer is 46. " * 99}  # cut into several pieces
    rows[20] = conversation(120, 200)  # too long
    return write_rows(rows)


@pytest.fixture
def config(path):
    return DataConfig(path, LENGTH, sequences_per_batch=3, open_sequences=4, num_threads=2)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_equal(got, want):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.keys() == w.keys()
        for name in w:
            np.testing.assert_array_equal(g[name], w[name], err_msg=name)


def documents(batches):
    """Every document of some batches as a tuple of ids."""
    found = Counter()
    for batch in batches:
        for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
            for segment in range(1, segments.max() + 1):
                found[tuple(ids[segments == segment].tolist())] += 1
    return found


def test_one_epoch_holds_every_usable_document_once(config, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        iterator = make_batches(replace(config, epochs=1), tokenizer)
        batches = list(iterator)
    assert all(batch["input_ids"].shape == (3, LENGTH) for batch in batches)
    rows = [json.loads(line) for line in Path(config.path).read_text().splitlines()]
    expected = Counter()
    for row in rows:
        if "text" in row:
            ids = [*tokenizer.encode(row["text"]), tokenizer.token_id("<|endoftext|>")]
            expected.update(tuple(ids[i : i + LENGTH]) for i in range(0, len(ids), LENGTH))
        elif len(ids := tokenizer.encode(tokenizer.chat_template.render(row["messages"]))) <= LENGTH:
            expected[tuple(ids)] += 1
    assert documents(batches) == expected
    report = iterator.report()
    assert report["dropped"] == {"too_long": 1}
    assert (report["rows_in_data"], report["documents"], report["epochs"]) == (60, 60, 1.0)
    assert report["tokens"] == sum(len(ids) * count for ids, count in expected.items())
    assert report["trained_tokens"] == sum(int(batch["trained"].sum()) for batch in batches)
    assert 0.8 < report["packing_efficiency"] <= 1
    [warning] = [record.getMessage() for record in caplog.records if record.name == "train.data.documents"]
    assert "data.jsonl line 21 is left out" in warning
    assert f"more than data.sequence_length={LENGTH}" in warning


def test_order_depends_on_the_seed_and_changes_every_epoch(config, tokenizer):
    def order(seed, epochs=2):
        # One open row keeps the order of the documents.
        settings = replace(config, seed=seed, epochs=epochs, open_sequences=1)
        return [ids for batch in make_batches(settings, tokenizer) for ids in documents([batch])]

    first, again, other = order(0), order(0), order(1)
    assert first == again != other
    half = order(0, epochs=1)
    assert first[: len(half) // 2] == half[: len(half) // 2]
    assert first[-len(half) // 2 :] != half[-len(half) // 2 :]


def test_number_of_threads_changes_nothing(config, tokenizer):
    assert_equal(
        take(make_batches(replace(config, num_threads=1), tokenizer), 12),
        take(make_batches(replace(config, num_threads=5), tokenizer), 12),
    )


@pytest.mark.parametrize("epochs", [2, None])
def test_any_interruption_continues_exactly(config, tokenizer, epochs):
    config = replace(config, epochs=epochs)
    whole, states = make_batches(config, tokenizer), []
    want = []
    for _ in range(30):
        states.append(json.loads(json.dumps(whole.get_state())))
        if (batch := next(whole, None)) is None:
            break
        want.append(batch)
    assert len(want) > 10
    resumed = make_batches(config, tokenizer)
    for done, state in enumerate(states):
        resumed.set_state(state)
        # What stands in the state after some batches decides all that follow.
        some = want[done : done + 6]
        assert_equal([batch for _, batch in zip(some, resumed, strict=False)], some)
        if done + 6 < len(states):
            assert json.loads(json.dumps(resumed.get_state())) == states[done + 6]
    assert any(state["shards"]["0"]["open"] for state in states)
    assert any(state["shards"]["0"]["ready"] for state in states)
    final = make_batches(config, tokenizer)
    final.set_state(states[5])
    assert_equal(take(final, len(want) - 5), want[5:])
    assert final.report() == whole.report()


def test_an_ended_iterator_stays_ended_also_when_restored(config, tokenizer):
    iterator = make_batches(replace(config, epochs=1), tokenizer)
    list(iterator)
    assert next(iterator, None) is None
    other = make_batches(replace(config, epochs=1), tokenizer)
    other.set_state(iterator.get_state())
    assert next(other, None) is None
    assert other.report() == iterator.report()


def test_a_state_of_other_data_is_refused(config, tokenizer, write_rows):
    state = make_batches(config, tokenizer).get_state()
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        make_batches(replace(config, seed=1), tokenizer).set_state(state)
    other = write_rows([conversation(1, 1)], "other.jsonl")
    with pytest.raises(ValueError, match=r"data was .* rows was 60, is 1; start a new run"):
        make_batches(replace(config, path=other), tokenizer).set_state(state)


def test_small_data(config, tokenizer, write_rows):
    config = replace(config, path=write_rows([conversation(1, 1)], "one.jsonl"))
    [batch] = make_batches(replace(config, epochs=1), tokenizer)
    assert (batch["segment_ids"].max(axis=1) > 0).tolist() == [True, False, False]
    assert (batch["input_ids"][batch["segment_ids"] == 0] == tokenizer.pad_token_id).all()
    assert not batch["trained"][batch["segment_ids"] == 0].any()
    endless = take(make_batches(config, tokenizer), 3)
    assert all((batch["segment_ids"].max(axis=1) > 1).all() for batch in endless)


BAD_LINES = [
    ('{"messages": ', "invalid_json", "line 17: the row is not valid JSON"),
    ({"prompt": "a"}, "missing_key", "line 17: the row is of no known form"),
    ({"messages": conversation(1, 1)["messages"][::-1]}, "wrong_role_order", "line 17: message 1 is assistant"),
    ({"text": "a<|im_end|>"}, "control_token", "line 17: the text spells"),
]


@pytest.mark.parametrize(("line", "reason", "words"), BAD_LINES)
def test_bad_rows(tokenizer, write_rows, line, reason, words):
    rows = [conversation(i, 1) for i in range(16)] + [line] + [conversation(99, 1)]
    config = DataConfig(write_rows(rows), LENGTH, epochs=1)
    with pytest.raises(ValueError, match=f"data.jsonl {words}.*; mend the row, or leave .* --data.bad-rows drop"):
        make_batches(config, tokenizer)
    iterator = make_batches(replace(config, bad_rows="drop"), tokenizer)
    assert sum(documents(iterator).values()) == 17
    assert iterator.report()["unusable_rows"] == {reason: 1}


@pytest.fixture
def checked_by_sample(monkeypatch):
    """Treats a hundred rows as large data, of which few are checked before a run starts."""
    monkeypatch.setattr("train.data.documents._CHECKED_BYTES", 1000)
    monkeypatch.setattr("train.data.documents._CHECKED_RUNS", 4)


def test_a_bad_row_of_large_data_stops_the_run_when_it_is_met(tokenizer, write_rows, checked_by_sample):
    """... and the run goes on where it was with the other policy, as if it had had that from the beginning."""
    rows = [conversation(i, 1) for i in range(100)]
    rows[90] = {"prompt": "a"}
    config = DataConfig(write_rows(rows), LENGTH, sequences_per_batch=1, open_sequences=2, epochs=1)
    stopped, dropping = (make_batches(replace(config, bad_rows=policy), tokenizer) for policy in ("error", "drop"))
    assert 4 <= stopped.report()["rows_checked"] < 20
    want, state, done = list(dropping), None, 0
    with pytest.raises(ValueError, match=r"data.jsonl line 91: the row is of no known form .* --data.bad-rows drop"):
        while True:
            state = stopped.get_state()
            next(stopped)
            done += 1
    assert 0 < done < len(want)
    assert (dropping.report()["unusable_rows"], dropping.report()["dropped"]) == ({}, {"missing_key": 1})
    resumed = make_batches(replace(config, bad_rows="drop"), tokenizer)
    resumed.set_state(state)
    assert_equal(list(resumed), want[done:])


def test_the_sample_of_large_data_is_spread_over_it(tokenizer, write_rows, checked_by_sample):
    rows = [conversation(i, 1) for i in range(99)] + [{"prompt": "a"}]
    with pytest.raises(ValueError, match=r"data.jsonl line 100: .*; mend the row"):
        make_batches(DataConfig(write_rows(rows), LENGTH), tokenizer)


def test_long_rows_can_be_an_error(config, tokenizer):
    iterator = make_batches(replace(config, long_rows="error"), tokenizer)
    with pytest.raises(ValueError, match=r"data.jsonl line 21: \d+ tokens, more than data.sequence_length=96; raise"):
        list(iterator)


def test_what_the_template_refuses_is_a_bad_row(config, tokenizer, write_rows):
    results = [{"role": "user", "content": "<tool_response>1</tool_response>"}, {"role": "assistant", "content": "1"}]
    config = replace(config, path=write_rows([{"messages": results}, conversation(1, 1)]), epochs=1)
    with pytest.raises(ValueError, match=r"line 1: The chat template refuses .*: No user query found in messages\."):
        list(make_batches(config, tokenizer))
    iterator = make_batches(replace(config, bad_rows="drop"), tokenizer)
    assert len(list(iterator)) == 1
    assert iterator.report()["unusable_rows"] == iterator.report()["dropped"] == {"template": 1}


@pytest.mark.parametrize("epochs", [1, None])
def test_nothing_usable(config, tokenizer, write_rows, epochs):
    bad = replace(config, path=write_rows([{"a": 1}, "["]), bad_rows="drop", epochs=epochs)
    with pytest.raises(ValueError, match=r"no row of data.path=.* can be used: .*'missing_key': 1"):
        make_batches(bad, tokenizer)
    long = replace(config, path=write_rows([conversation(i, 200) for i in range(5)]), epochs=epochs)
    with pytest.raises(ValueError, match=r"no row of data.path=.* left out: \{'too_long': 5\}; raise"):
        next(make_batches(long, tokenizer))
