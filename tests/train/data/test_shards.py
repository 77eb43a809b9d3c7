"""Readers of some shards together see what one reader of all sees, from any position, however many they are."""

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.config.data import DataConfig, Source
from train.data.pipeline import make_batches, merge_states

LENGTH, ROWS, SHARDS = 64, 8, 4


def text(name, number, size):
    return {"text": f"{name} {number}: " + "so it is. " * size}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A mixture of JSONL and Parquet, some texts longer than a row, some rows unusable."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    rows = [text("a", i, rng.choice([1, 2, 3, 5, 40])) for i in range(150)]
    rows[3] = {"nothing": 1}
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pa.Table.from_pylist([text("b", i, rng.randrange(1, 8)) for i in range(40)])
    pq.write_table(table, folder / "b.parquet", row_group_size=7)
    sources = (Source(str(folder / "a.jsonl"), 3.0), Source(str(folder / "b.parquet"), 1.0))
    return DataConfig(
        sources=sources,
        sequence_length=LENGTH,
        sequences_per_batch=ROWS,
        shards=SHARDS,
        open_sequences=4,
        bad_rows="drop",
        num_threads=2,
    )


def readers(config, tokenizer, count):
    size = ROWS // count
    return [make_batches(config, tokenizer, range(size * n, size * (n + 1))) for n in range(count)]


def assert_same_batch(iterators, want):
    parts = [next(iterator) for iterator in iterators]
    for name, array in want.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array, err_msg=name)


@pytest.fixture(scope="module")
def whole(config, tokenizer):
    """Batches of one reader of all, and its state and documents at each."""
    iterator, batches, states, places = make_batches(config, tokenizer), [], [], []
    for _ in range(40):
        states.append(json.loads(json.dumps(iterator.get_state())))
        batches.append(next(iterator))
        places.append(iterator.documents())
    return batches, states, places


@pytest.mark.parametrize("count", [2, 4, 8])
def test_any_number_of_readers_see_the_same_batches(config, tokenizer, whole, count):
    batches, states, places = whole
    iterators = readers(config, tokenizer, count)
    for batch, state, place in zip(batches[:15], states, places, strict=False):
        assert merge_states([iterator.get_state() for iterator in iterators]) == state
        assert_same_batch(iterators, batch)
        assert [row for iterator in iterators for row in iterator.documents()] == place


def test_any_number_of_readers_go_on_from_any_position(config, tokenizer, whole):
    batches, states, _ = whole
    by_count = {count: readers(config, tokenizer, count) for count in (1, 2, 4)}
    rng = random.Random(0)
    for position in rng.sample(range(len(batches) - 2), 6):
        state = states[position]
        # Each number of readers takes up what another number left.
        for iterators in by_count.values():
            for iterator in iterators:
                iterator.set_state(state)
            for batch in batches[position : position + 2]:
                assert_same_batch(iterators, batch)
            merged = merge_states([json.loads(json.dumps(iterator.get_state())) for iterator in iterators])
            assert merged == states[position + 2]


def test_a_state_is_small(whole):
    _, states, _ = whole
    assert max(len(json.dumps(state)) for state in states) < 8_000


def test_a_reader_opens_no_document_of_other_shards(config, tokenizer, whole):
    _, _, places = whole
    for iterator, rows in zip(readers(config, tokenizer, 2), (slice(0, 4), slice(4, 8)), strict=True):
        for place in places[:10]:
            next(iterator)
            assert iterator.documents() == place[rows]
        taken = sum(shard["taken"] for shard in iterator.get_state()["shards"].values())
        assert iterator.report()["documents"] == taken
        assert [*iterator.get_state()["shards"]] == (["0", "1"] if rows.start == 0 else ["2", "3"])


def test_documents_name_what_a_row_holds(tokenizer, whole):
    batches, _, places = whole
    for batch, place in zip(batches, places, strict=True):
        for ids, segments, names in zip(batch["input_ids"], batch["segment_ids"], place, strict=True):
            assert len(names) == segments.max()
            for segment, name in enumerate(names, start=1):
                said = tokenizer.decode(ids[segments == segment].tolist())
                file, _, number = name.rpartition(" ")
                if ": " in said:  # not a later piece of a text that was cut
                    assert said.split(":")[0] == f"{'a' if file.endswith('a.jsonl line') else 'b'} {int(number) - 1}"


def test_sources_keep_their_shares(config, tokenizer):
    iterator = make_batches(replace(config, shards=1), tokenizer)
    for _ in range(60):
        next(iterator)
    passes = iterator.report()["passes"]
    first, second = (source.path for source in config.sources)
    assert passes[first] * 150 / (passes[second] * 40) == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize("num_shards", [1, 4])
def test_an_epoch_of_a_mixture(config, tokenizer, num_shards):
    """Every usable row once at least; the second source, short for its weight, more than once."""
    iterator = make_batches(replace(config, shards=num_shards, epochs=1), tokenizer)
    seen, last = Counter(), []
    for _ in iterator:
        last = iterator.documents()
        for row in last:
            seen.update(set(row))
    report = iterator.report()
    assert len({name for name in seen if "a.jsonl" in name}) == 149
    assert len({name for name in seen if "b.parquet" in name}) == 40
    assert report["dropped"] == {"missing_key": 1}
    assert report["epochs"] == 1
    assert [passes >= 1 for passes in report["passes"].values()] == [True, True]
    assert report["documents"] == pytest.approx(200, abs=3)
    assert len(last) == ROWS
    assert next(iterator, None) is None


@pytest.mark.parametrize("num_shards", [1, 2])
def test_epochs_count_what_batches_held(tmp_path, tokenizer, num_shards):
    """Not the documents that wait in open sequences, which are most of a small source."""
    (tmp_path / "short.jsonl").write_text('{"text": "alone"}\n' * 60)
    config = DataConfig(str(tmp_path / "short.jsonl"), LENGTH, sequences_per_batch=2, shards=num_shards)
    iterator, held = make_batches(config, tokenizer), 0
    for _ in range(3):
        next(iterator)
        held += sum(map(len, iterator.documents()))
        report = iterator.report()
        assert report["epochs"] == iterator.epoch == held / 60
        assert report["documents"] - report["waiting"] == held and report["waiting"] > 0
    resumed = make_batches(config, tokenizer)
    resumed.set_state(iterator.get_state())
    assert (resumed.report(), resumed.epoch) == (iterator.report(), iterator.epoch)


def test_more_shards_than_documents(tmp_path, tokenizer):
    (tmp_path / "one.jsonl").write_text('{"text": "alone"}\n')
    config = DataConfig(str(tmp_path / "one.jsonl"), LENGTH, sequences_per_batch=4, shards=4, epochs=2)
    iterator = make_batches(config, tokenizer)
    [batch] = iterator
    assert (batch["segment_ids"].max(axis=1)).tolist() == [1, 1, 0, 0]
    assert iterator.report()["documents"] == 2


@pytest.mark.parametrize("sequences", [range(0), range(0, 8, 2), range(-1, 3), range(4, 9)])
def test_sequences_of_no_batch_are_refused(config, tokenizer, sequences):
    with pytest.raises(ValueError, match=r"are not neighbouring sequences of a batch; give a range within 0 to .*=8"):
        make_batches(config, tokenizer, sequences)


def test_states_that_do_not_fit_are_refused(config, tokenizer, whole):
    _, states, _ = whole
    first, second = readers(config, tokenizer, 2)
    one, two = first.get_state(), second.get_state()
    with pytest.raises(ValueError, match=r"no process saved the position of data shards \[2, 3\]"):
        merge_states([one, one])
    with pytest.raises(ValueError, match=r"lacks data shards \[2, 3\]"):
        second.set_state(one)
    next(second)
    with pytest.raises(ValueError, match="not at the same batch"):
        merge_states([one, second.get_state()])
    with pytest.raises(ValueError, match="different positions of data shard 2"):
        merge_states([states[0], two | {"shards": second.get_state()["shards"]}])
    with pytest.raises(ValueError, match="shards was 4, is 2"):
        make_batches(replace(config, shards=2), tokenizer).set_state(states[3])
    swapped = replace(config, sources=(replace(config.sources[0], weight=2.0), config.sources[1]))
    with pytest.raises(ValueError, match=r"shares was \[49152, 16384\], is \[43691, 21845\]"):
        make_batches(swapped, tokenizer).set_state(states[3])


def test_a_source_without_rows_is_refused(config, tokenizer, tmp_path):
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(ValueError, match=r"none.jsonl is empty"):
        make_batches(replace(config, sources=(*config.sources, Source(str(tmp_path / "none.jsonl")))), tokenizer)
