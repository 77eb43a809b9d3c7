"""What is found out about the data before a run: lengths, losses, and how many batches some epochs fill."""

from dataclasses import replace

import numpy as np
import pytest

from train.config.data import DataConfig, Source
from train.data.documents import Documents
from train.data.epochs import batches_of_epochs, count_batches
from train.data.measure import check_lost, describe, histogram, measure
from train.data.pipeline import make_batches

LENGTH = 96


def conversation(number, size):
    return {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "46 " * size}]}


@pytest.fixture
def config(write_rows):
    rows = [conversation(i, 1 + i % 13) for i in range(61)]
    rows[7] = {"text": "The answer is 46. " * 99}  # cut into several pieces
    rows[20] = conversation(20, 200)  # too long
    rows[30] = {"messages": []}
    return DataConfig(write_rows(rows), LENGTH, sequences_per_batch=4, open_sequences=3, bad_rows="drop", num_threads=2)


def test_every_document_is_measured_or_counted_with_its_place(config, tokenizer):
    found = measure(Documents(config, tokenizer), whole=True)
    iterator = make_batches(replace(config, epochs=1), tokenizer)
    list(iterator)
    report = iterator.report()
    assert (found.documents, found.is_whole) == (61, True)
    assert (found.epoch_tokens, found.trained.sum()) == (report["tokens"], report["trained_tokens"])
    assert dict(found.lost) == report["dropped"] == {"too_long": 1, "wrong_role_order": 1}
    assert "line 21: " in found.places["too_long"] and "line 31: " in found.places["wrong_role_order"]
    assert found.share_lost == pytest.approx(2 / 61)


@pytest.mark.parametrize(("shards", "epochs"), [(1, 1), (1, 3), (2, 2), (4, 5)])
def test_batches_are_counted_as_the_run_makes_them(config, tokenizer, shards, epochs):
    config = replace(config, shards=shards, epochs=epochs)
    documents = Documents(config, tokenizer)
    count = count_batches(documents, measure(documents, whole=True))
    assert count == len(list(make_batches(config, tokenizer)))


def test_batches_of_a_mixture_are_counted_too(config, tokenizer, write_rows):
    small = write_rows([conversation(i, 30) for i in range(5)], "small.jsonl")
    config = replace(config, path=None, sources=(Source(config.path, weight=2.0), Source(small)), epochs=2)
    documents = Documents(config, tokenizer)
    found = measure(documents, whole=True)
    assert found.documents == documents.epoch_length > 66
    assert count_batches(documents, found) == len(list(make_batches(config, tokenizer)))


def test_a_sample_judges_the_whole(config, tokenizer, monkeypatch):
    monkeypatch.setattr("train.data.measure.SAMPLE_DOCUMENTS", 40)
    documents = Documents(config, tokenizer)
    found, whole = measure(documents, whole=False), measure(documents, whole=True)
    assert (found.documents, found.is_whole) == (40, False)
    np.testing.assert_array_equal(found.lengths, whole.lengths[: len(found.lengths)])
    assert found.epoch_tokens == round(found.lengths.sum() * 61 / 40)
    monkeypatch.setattr("train.data.measure.SAMPLE_TOKENS", 100)
    assert measure(documents, whole=False).documents < 40


def test_too_many_lost_documents_are_an_error_that_says_what_to_raise(config, tokenizer):
    found = measure(Documents(config, tokenizer), whole=True)
    check_lost(found, config)
    with pytest.raises(ValueError, match=r"3\.3% of the doc.*too_long 1 .*line 21.*raise --data\.sequence-length"):
        check_lost(found, replace(config, max_lost=0.03))
    with pytest.raises(ValueError, match=r"line 21: .* more than data\.sequence_length=96"):
        measure(Documents(replace(config, long_rows="error"), tokenizer), whole=True)
    with pytest.raises(ValueError, match=r"max_lost=5 is not a share"):
        replace(config, max_lost=5)


def test_data_of_which_nothing_is_left_name_the_first_row(config, tokenizer, write_rows, monkeypatch):
    path = write_rows([conversation(i, 200) for i in range(9)], "long.jsonl")
    documents = Documents(replace(config, path=path, max_lost=1), tokenizer)
    wanted = r"no row of data\.path=.*too_long': 9.*raise --data\.sequence-length\), such as .*line \d: \d+ tokens"
    with pytest.raises(ValueError, match=wanted):
        measure(documents, whole=True)
    monkeypatch.setattr("train.data.measure.SAMPLE_DOCUMENTS", 4)
    with pytest.raises(ValueError, match=r"none of the first 4 rows of data\.path="):
        measure(documents, whole=False)


def test_held_out_documents_are_counted_apart(config, tokenizer):
    found = measure(Documents(replace(config, eval_fraction=0.5), tokenizer), whole=True)
    assert found.documents == 61 and 20 < found.num_held_out < 40
    assert found.share_lost == found.num_lost / (61 - found.num_held_out)
    first = describe(found, config, None)[0]
    assert f"{61 - found.num_held_out} documents an epoch beside {found.num_held_out} held out for validation" in first


def test_batches_of_large_data_are_counted_once(config, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("train.data.measure.SAMPLE_DOCUMENTS", 10)
    documents = Documents(replace(config, epochs=2), tokenizer)
    found = measure(documents, whole=False)
    counted = batches_of_epochs(documents, tokenizer, found)
    [kept] = (tmp_path / "cache" / "qwen35-jax" / "epochs").iterdir()
    monkeypatch.setattr("train.data.epochs.measure", None)
    assert (
        batches_of_epochs(documents, tokenizer, found)
        == counted
        == len(list(make_batches(documents.config, tokenizer)))
    )
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept.write_text("{")  # cut off by a full disk
    assert batches_of_epochs(documents, tokenizer, found) == counted


def test_a_process_with_some_of_the_shards_goes_on_when_they_end(config, tokenizer):
    config = replace(config, shards=4, epochs=1)
    whole = list(make_batches(config, tokenizer))
    for first in range(4):
        part = make_batches(config, tokenizer, range(first, first + 1))
        for batch, want in zip([next(part) for _ in whole], whole, strict=True):
            np.testing.assert_array_equal(batch["input_ids"][0], want["input_ids"][first])
        assert not next(part)["segment_ids"].any()


def test_the_description_gives_tokens_losses_and_epochs(config, tokenizer, monkeypatch):
    found = measure(Documents(config, tokenizer), whole=True)
    text = "\n".join(describe(found, config, steps=100))
    assert f"61 documents an epoch, {found.epoch_tokens:,} tokens" in text
    assert "3.3% of 61 documents are left out: " in text and "too_long 1" in text
    assert f"{100 / (found.epoch_tokens / (4 * LENGTH)):,.1f} epochs" in text and "judged" not in text
    monkeypatch.setattr("train.data.measure.SAMPLE_DOCUMENTS", 40)
    assert "judged from 40 documents" in describe(measure(Documents(config, tokenizer), whole=False), config, None)
    bars = histogram(found)
    assert len(bars) == 12 and sum(int(bar.split(" tokens ")[1].split()[0]) for bar in bars) == len(found.lengths)
