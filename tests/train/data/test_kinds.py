"""Whether a run trains conversations, which decides what is exported as a chat model."""

import pytest

from train.config.data import DataConfig, Source
from train.data.pipeline import make_batches

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
TEXT = {"text": "The answer is 46."}


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([TEXT], False),
        ([CHAT], True),
        ([TEXT, CHAT], True),
        ([TEXT | {"messages": None}], False),
        ([CHAT | {"text": None}], True),
        ([TEXT, {"messages": [{"role": "user", "content": "no answer"}]}], False),  # left out
    ],
)
def test_rows_say_whether_they_are_conversations(tokenizer, write_rows, rows, wanted):
    config = DataConfig(write_rows(rows), 96, sequences_per_batch=1, bad_rows="drop")
    assert make_batches(config, tokenizer).corpus.has_conversations is wanted


def test_one_source_of_conversations_is_enough(tokenizer, write_rows):
    sources = (Source(write_rows([TEXT], "a.jsonl"), 1.0), Source(write_rows([CHAT], "b.jsonl"), 1.0))
    config = DataConfig(sources=sources, sequence_length=96, sequences_per_batch=1)
    assert make_batches(config, tokenizer).corpus.has_conversations is True
