"""A small tokenizer and a way to write rows of data."""

import json

import pytest

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.processing import Tokenizer
from tests.processing.conftest import TEXTS
from tests.train.data.pictures import show_images
from train.data import shards


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_pretrained(build_tiny_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=400))


@pytest.fixture(scope="session")
def seeing(tmp_path_factory):
    """A small tokenizer whose template shows images and videos."""
    folder = build_tiny_tokenizer(TEXTS, tmp_path_factory.mktemp("seeing"), vocab_size=400)
    return Tokenizer.from_pretrained(show_images(folder))


@pytest.fixture
def write_rows(tmp_path):
    """Writes rows (or lines as they are) to a JSONL file and returns its path."""

    def write(rows, name="data.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture(autouse=True)
def little_is_read_ahead(monkeypatch):
    """Tests restart often, which throws away what was read ahead. How much that is decides nothing."""
    monkeypatch.setattr(shards, "_RUN", 3)
    monkeypatch.setattr(shards, "_MAX_DOCUMENTS_AHEAD", 6)
