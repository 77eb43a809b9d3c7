"""Validation data: rows that never train, or a file of their own; read once, packed, filled up."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.config.data import DataConfig, Source
from train.data import validation
from train.data.documents import Documents
from train.data.order import held_out_rows
from train.data.pipeline import make_batches, merge_states
from train.data.validation import read_validation

LENGTH, WHOLE = 112, range(4)


def read(config, tokenizer, sequences):
    return read_validation(config, tokenizer, sequences, Documents(config, tokenizer))


def conversation(number, words="is one of many numbers"):
    turns = (("user", f"say {number}"), ("assistant", f"{number} {words}"))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.fixture
def config(write_rows):
    path = write_rows([conversation(number) for number in range(40)])
    return DataConfig(path, sequence_length=LENGTH, sequences_per_batch=4, epochs=1, eval_fraction=0.2)


def documents(batches):
    """Counts the documents of batches by their tokens."""
    found = Counter()
    for batch in batches:
        for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
            found.update(tuple(ids[segments == number].tolist()) for number in range(1, segments.max() + 1))
    return found


def test_held_out_rows_are_validated_on_and_never_trained(config, tokenizer):
    trained = documents(make_batches(config, tokenizer))
    held_out = documents(read(config, tokenizer, WHOLE).batches)
    everything = documents(make_batches(replace(config, eval_fraction=None), tokenizer))
    assert held_out.total() == 8 and trained.total() == 32
    assert trained + held_out == everything
    assert not trained.keys() & held_out.keys()


def test_which_rows_are_held_out_is_a_function_of_the_seed_and_of_nothing_else(config, tokenizer):
    held_out = documents(read(config, tokenizer, WHOLE).batches)
    for changes in ({"shards": 2}, {"open_sequences": 2}, {"num_threads": 1}, {"sequences_per_batch": 8}):
        other = replace(config, **changes)
        size = range(other.sequences_per_batch)
        assert documents(read(other, tokenizer, size).batches) == held_out
        assert not documents(make_batches(other, tokenizer)).keys() & held_out.keys()
    assert documents(read(replace(config, seed=1), tokenizer, WHOLE).batches) != held_out


def test_a_resumed_run_and_several_processes_hold_out_the_same_rows(config, tokenizer):
    config = replace(config, epochs=None, shards=2)
    held_out = documents(read(config, tokenizer, WHOLE).batches)
    parts = [make_batches(config, tokenizer, sequences) for sequences in (range(2), range(2, 4))]
    for _ in range(3):
        batches = [next(part) for part in parts]
        assert not documents(batches).keys() & held_out.keys()
    resumed = make_batches(config, tokenizer)
    resumed.set_state(merge_states([part.get_state() for part in parts]))
    both = [next(part) for part in parts]
    together = {name: np.concatenate([batch[name] for batch in both]) for name in both[0]}
    np.testing.assert_equal(dict(next(resumed)), together)
    assert resumed.report()["held_out"] > 0


def test_a_position_of_a_run_with_other_held_out_rows_is_refused(config, tokenizer):
    state = make_batches(config, tokenizer).get_state()
    with pytest.raises(ValueError, match=r"eval_fraction was 0.2, is 0.3"):
        make_batches(replace(config, eval_fraction=0.3), tokenizer).set_state(state)


def test_every_source_holds_out_its_share(write_rows, tokenizer):
    paths = [write_rows([conversation(f"{name} {n}") for n in range(count)], name) for name, count in
             (("a.jsonl", 30), ("b.jsonl", 10))]  # fmt: skip
    sources = (Source(paths[0]), Source(paths[1], 3.0))
    config = DataConfig(sources=sources, sequence_length=LENGTH, sequences_per_batch=4, eval_fraction=0.1)
    assert Counter(source for source, _ in read(config, tokenizer, WHOLE).rows) == {0: 3, 1: 1}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_file_of_its_own_is_read_whole_and_the_last_batch_filled_up(config, tokenizer, tmp_path, write_rows, suffix):
    rows = [conversation(f"other {number}") for number in range(21)]
    path = write_rows(rows, "eval.jsonl")
    if suffix == "parquet":
        path = str(tmp_path / "eval.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    config = replace(config, eval_fraction=None, eval_path=path)
    batches = read(config, tokenizer, WHOLE).batches
    texts = [tokenizer.encode(tokenizer.chat_template.render(row["messages"])) for row in rows]
    assert documents(batches) == Counter(map(tuple, texts))
    assert all(batch["input_ids"].shape == (4, LENGTH) for batch in batches)
    assert not batches[-1]["segment_ids"][-1].any() and not batches[-1]["trained"][-1].any()
    halves = [read(config, tokenizer, part).batches for part in (range(2), range(2, 4))]
    for whole, *parts in zip(batches, *halves, strict=True):
        for name, array in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
    first = read(replace(config, eval_batches=1), tokenizer, WHOLE).batches
    assert len(first) == 1 and documents(first) == documents(batches[:1])


def test_policies_are_those_of_training(config, tokenizer, write_rows, caplog):
    rows = [conversation(1), conversation(2, "long " * 90), {"messages": []}, conversation(3)]
    config = replace(config, eval_fraction=None, eval_path=write_rows(rows, "eval.jsonl"), bad_rows="drop")
    assert documents(read(config, tokenizer, WHOLE).batches).total() == 2
    assert "2 of 4 rows are left out" in caplog.text and "'too_long': 1" in caplog.text
    with pytest.raises(ValueError, match=r"validation data: .*eval.jsonl.*line 3: .*--data.bad-rows"):
        read(replace(config, bad_rows="error"), tokenizer, WHOLE)
    with pytest.raises(ValueError, match=r"validation data: .*line 2: .*--data.long-rows"):
        read(replace(config, long_rows="error"), tokenizer, WHOLE)


def test_wrong_validation_data_are_named(config, tokenizer, tmp_path, write_rows, monkeypatch):
    (tmp_path / "empty.jsonl").touch()
    prompts = [{"messages": [{"role": "user", "content": "anybody there?"}]}]
    wrong = {
        str(tmp_path / "absent.jsonl"): "validation data: .*data.eval_path=.*absent.jsonl' does not exist",
        str(tmp_path / "empty.jsonl"): "validation data: .*empty.jsonl is empty",
        write_rows(prompts, "prompts.jsonl"): "validation data: ",
        write_rows([json.dumps(conversation(1)), '{"messages":'], "cut.jsonl"): "validation data: .*line 2",
    }
    for path, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            read(replace(config, eval_fraction=None, eval_path=path), tokenizer, WHOLE)
    monkeypatch.setattr(validation, "MOST_BYTES", 9 * 4 * LENGTH)
    with pytest.raises(ValueError, match=r"more than 1 batches.* limit them with data.eval_batches"):
        read(replace(config, eval_fraction=0.5), tokenizer, WHOLE)
    read(replace(config, eval_fraction=0.5, eval_batches=1), tokenizer, WHOLE)


def test_rows_that_are_all_too_long_stop_a_run_that_holds_some_out(write_rows, tokenizer):
    path = write_rows([conversation(number, "long " * 90) for number in range(20)])
    config = DataConfig(path, sequence_length=LENGTH, sequences_per_batch=4, eval_fraction=0.2)
    with pytest.raises(ValueError, match="can be used"):
        next(make_batches(config, tokenizer))


@pytest.mark.parametrize(("count", "fraction", "number"), [(100, 0.02, 2), (300, 0.1, 30), (5, 0.01, 1), (2, 0.99, 1)])
def test_so_many_rows_are_held_out_as_the_fraction_says(count, fraction, number):
    rows = held_out_rows(count, fraction, (0, 0))
    assert len(rows) == number and rows <= set(range(count))
    assert rows == held_out_rows(count, fraction, (0, 0))


def test_a_single_row_cannot_be_split(write_rows, tokenizer):
    config = DataConfig(write_rows([conversation(1)]), sequence_length=LENGTH, eval_fraction=0.5)
    with pytest.raises(ValueError, match=r"single row; give data.eval_path"):
        make_batches(config, tokenizer)
