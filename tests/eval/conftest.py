"""Small data sets, and an engine that answers from a table."""

import json

import pytest

from eval.scorers import ifeval
from qwen35_jax.inference.engine import Completion
from tests.conftest import shared_dir


class FakeEngine:
    """Has the interface of `qwen35_jax.Engine`; answers the question that is in the prompt.

    Attributes:
      calls: the keyword arguments of every call, with the questions.
    """

    def __init__(self, answers, *, fail_after=None):
        self.tokenizer = self
        self.answers, self.fail_after, self.calls = answers, fail_after, []

    def encode_chat(self, messages, *, tools=None, enable_thinking=None):
        assert [message["role"] for message in messages] == ["user"]
        assert type(enable_thinking) is bool, "the template tests identity with true and false"
        return list(messages[0]["content"].encode())

    def generate(self, prompts, *, sampling, max_new_tokens, seed=0, on_finish=None):
        questions = [bytes(prompt).decode() for prompt in prompts]
        self.calls.append({"questions": questions, "sampling": sampling, "max_new_tokens": max_new_tokens})
        order = sorted(range(len(questions)), key=lambda index: -len(questions[index]))
        completions = {}
        for count, index in enumerate(order):
            if count == self.fail_after:
                raise KeyboardInterrupt
            answer = self.answers[questions[index]]
            text, reason = answer if isinstance(answer, tuple) else (answer, "stop")
            completions[index] = Completion(list(text.encode()), text, reason)
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
