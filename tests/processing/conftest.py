"""A small tokenizer with Qwen3.5's special tokens, trained on a few lines."""

import pytest

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.processing import Tokenizer

TEXTS = [
    "What is 12 + 34? The answer is 46.",
    "You are a helpful assistant who thinks step by step.",
    "system user assistant tool\n\n",
] * 4


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory):
    return build_tiny_tokenizer(TEXTS, tmp_path_factory.mktemp("tiny_tokenizer"), vocab_size=400)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_dir):
    return Tokenizer.from_pretrained(tiny_tokenizer_dir)
