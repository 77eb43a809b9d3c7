"""Wrong settings are refused when the dataclass is built."""

import pytest

from train.data.config import DataConfig


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("path", "", "data.path is empty"),
        ("sequence_length", 1, "at least 2"),
        ("rows_per_batch", 0, "at least 1"),
        ("open_rows", 0, "at least 1"),
        ("num_threads", 0, "at least 1"),
        ("seed", -1, r"in \[0, 2\*\*32\)"),
        ("epochs", 0, "None to repeat for ever"),
        ("train_on", "first", "choose one of all, last"),
        ("long_rows", "cut", "choose one of drop, error"),
        ("bad_rows", "ignore", "choose one of drop, error"),
    ],
)
def test_refused(field, value, words):
    fields = {"path": "data.jsonl", "sequence_length": 64} | {field: value}
    with pytest.raises(ValueError, match=words):
        DataConfig(**fields)
