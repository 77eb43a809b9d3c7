"""Wrong settings are refused when the dataclass is built."""

import pytest

from train.config.data import DataConfig, Source


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("path", "", "data.path is empty"),
        ("sequence_length", 1, "at least 2"),
        ("sequences_per_batch", 0, "at least 1"),
        ("open_sequences", 0, "at least 1"),
        ("num_threads", 0, "at least 1"),
        ("seed", -1, r"in \[0, 2\*\*32\)"),
        ("epochs", 0, "None to repeat for ever"),
        ("train_on", "first", "choose one of all, last"),
        ("long_rows", "cut", "choose one of drop, error"),
        ("bad_rows", "ignore", "choose one of drop, error"),
        ("shards", 0, "at least 1"),
        ("shards", 3, "sequences_per_batch=8 cannot be dealt to data.shards=3; make it a multiple of 3"),
        ("sources", (Source("a.jsonl"), Source("b.jsonl"), Source("a.jsonl", 2.0)), "names 'a.jsonl' twice"),
        ("eval_fraction", 0, "data.eval_fraction=0 is no share .* such as 0.02"),
        ("eval_fraction", 1.0, "data.eval_fraction=1.0 is no share"),
        ("eval_fraction", float("nan"), "data.eval_fraction=nan is not finite"),
        ("eval_batches", 3, "data.eval_batches=3 .* needs data.eval_path"),
    ],
)
def test_refused(field, value, words):
    fields = {"path": "data.jsonl", "sequence_length": 64} | {field: value}
    with pytest.raises(ValueError, match=words):
        DataConfig(**fields)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_weights_are_positive(weight):
    with pytest.raises(ValueError, match=r"of 'a.jsonl' in data.sources must be a positive number"):
        Source("a.jsonl", weight)


def test_a_source_has_a_path():
    with pytest.raises(ValueError, match=r"a path of data.sources is empty"):
        Source("")


def test_a_path_takes_the_place_of_sources():
    sources = (Source("a.jsonl", 3.0), Source("b.jsonl"))
    assert DataConfig(sources=sources).mixture == sources
    assert DataConfig("org/name", sources=sources, hub_files="*a*").mixture == (Source("org/name", hub_files="*a*"),)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"eval_fraction": 0.1, "eval_path": "x.jsonl"}, "data.eval_fraction=0.1 and data.eval_path='x.jsonl' both"),
        ({"eval_path": "x.jsonl", "eval_batches": 0}, "data.eval_batches=0 must be at least 1"),
        ({"path": None, "sources": (Source("a"),), "eval_split": "test"}, "data.eval_split='test' is a split of"),
    ],
)
def test_validation_data_are_named_once(fields, words):
    with pytest.raises(ValueError, match=words):
        DataConfig(**{"path": "data.jsonl"} | fields)
