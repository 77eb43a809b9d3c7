"""Small data sets, and an engine that answers from a table."""

import json
import re
import types

import pytest

from eval.tasks import ifeval
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.metrics import Metrics
from qwen35_jax.inference.requests import Completion
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing import Tokenizer
from tests.conftest import shared_dir
from tests.inference.scripted import SIZES


class ByteTokenizer(Tokenizer):
    """Has a token for each byte and each think mark; its template is the question and the mark that the mode sets."""

    MARKS = ("<think>", "</think>")
    pad_token_id = 0

    def __init__(self):
        """Needs no files."""
        self._chat_template, self._name = None, "bytes"

    def token_id(self, token):
        return 256 + self.MARKS.index(token)

    def encode(self, text):
        pieces = re.split("(</?think>)", text)
        return [
            token
            for piece in pieces
            for token in ([self.token_id(piece)] if piece in self.MARKS else piece.encode("utf-8"))
        ]

    def decode(self, ids, *, skip_special_tokens=True):
        parts = (self.MARKS[token - 256].encode() if token >= 256 else bytes([token]) for token in ids)
        return b"".join(parts).decode("utf-8", errors="replace")

    def encode_chat(self, messages, *, tools=None, enable_thinking=None):
        assert [message["role"] for message in messages] == ["user"]
        assert type(enable_thinking) is bool, "the template tests identity with true and false"
        return self.encode(messages[0]["content"] + ("<think>" if enable_thinking else "<think></think>"))


class FakeEngine(Engine):
    """Has the interface of ``qwen35_jax.Engine``; answers the question that is in the prompt.

    Attributes:
      calls: the keyword arguments of every call, with the questions.
    """

    model = types.SimpleNamespace(config=PRESETS["2b"])
    metrics = Metrics()

    def __init__(self, answers, *, fail_after=None):
        self.tokenizer = ByteTokenizer()
        self.sizes = SIZES
        self.answers, self.fail_after, self.calls = answers, fail_after, []

    def generate(self, prompts, *, sampling, max_new_tokens, seed=0, on_finish=None):
        questions = [self.tokenizer.decode(prompt).partition("<think>")[0] for prompt in prompts]
        self.calls.append(
            {"questions": questions, "sampling": sampling, "max_new_tokens": max_new_tokens, "seed": seed}
        )
        order = sorted(range(len(questions)), key=lambda index: -len(questions[index]))
        completions = {}
        for count, index in enumerate(order):
            if count == self.fail_after:
                raise KeyboardInterrupt
            answer = self.answers[questions[index]]
            text, reason = answer if isinstance(answer, tuple) else (answer, "stop")
            token_ids = self.tokenizer.encode(text)
            completions[index] = Completion.from_tokens(self.tokenizer, prompts[index], token_ids, reason)
            on_finish(index, completions[index])
        return [completions[index] for index in range(len(questions))]


def write_rows(path, rows):
    """Writes JSONL, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def verifiers():
    """Makes IFEval's verifiers ready; skips where its packages or NLTK's data are not installed."""
    shared = shared_dir()
    try:
        ifeval.prepare(None if shared is None else str(shared / "data"))
    except ValueError as err:
        pytest.skip(str(err))
