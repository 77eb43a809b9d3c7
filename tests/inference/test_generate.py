"""Reading conversations, telling reasoning from answers, and text that grows token by token."""

import json

import pytest

from qwen35_jax.inference.engine import Completion, Engine
from qwen35_jax.inference.generate import generate_rows, read_requests
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing.thinking import ThinkingStream, opens_thinking, split_tokens


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def question(text="hi"):
    return {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("prompt", "completion", "want"),
    [
        ("<think>\n", "why\n</think>\n\nthis<|im_end|>", ("why", "this")),
        ("<think>\n\n</think>\n\n", "this<|im_end|>", (None, "this")),
        ("<think>\n", "cut off", ("cut off", "")),
        ("no tags", "<think>\na\n</think>\n\nb", ("a", "b")),
        ("no tags", " b\n", (None, " b\n")),
        ("<think>\n", "</think>\n\nb", ("", "b")),
    ],
)
def test_thinking_and_answer_are_split(tokenizer, prompt, completion, want):
    opened = opens_thinking(tokenizer, tokenizer.encode(prompt))
    split = split_tokens(tokenizer, tokenizer.encode(completion), opened=opened)
    assert (split.thinking, split.answer) == want


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "日本語 and 🙂🙃!", "a real \N{REPLACEMENT CHARACTER} stays", "👩‍👩‍👧"]
)
def test_stream_gives_the_text_without_broken_characters(tokenizer, text):
    stream = ThinkingStream(tokenizer, opened=False)
    pieces = [stream.push(token)[1] for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.flush()[1] == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_stream_gives_broken_bytes_once_they_cannot_be_mended(tokenizer):
    accent, letter = tokenizer.encode("é")[0], tokenizer.encode("x")[0]
    stream = ThinkingStream(tokenizer, opened=False)
    assert stream.push(accent) == ("answer", "")
    assert stream.push(letter) == ("answer", "\N{REPLACEMENT CHARACTER}x")
    assert stream.push(accent) == ("answer", "")
    assert stream.flush() == ("answer", "\N{REPLACEMENT CHARACTER}")


def test_read_requests_renders_rows_and_numbers_them(tokenizer, tmp_path):
    path = write(tmp_path / "in.jsonl", question("a"), "", {**question("b"), "id": "second"}, {"text": "once upon"})
    requests = read_requests(path, tokenizer, enable_thinking=True)
    assert [request.id for request in requests] == [0, "second", 2]
    assert tokenizer.decode(requests[0].token_ids).endswith("user\na\nassistant\n<think>\n")
    assert tokenizer.decode(requests[2].token_ids) == "once upon"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([question(), "{broken"], "line 2"),
        ([["a", "list"]], "line 1.*messages"),
        ([{"messages": "text"}], "line 1.*messages"),
        ([{"messages": [*question()["messages"], {"role": "assistant", "content": "yes"}]}], "assistant's turn"),
        ([{"messages": []}], "line 1.*empty"),
        ([], "no rows"),
    ],
)
def test_wrong_rows_are_named(tokenizer, tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_requests(write(tmp_path / "in.jsonl", *rows), tokenizer, enable_thinking=None)


class EngineFinishingBackwards(Engine):
    """Answers each prompt with its number, the last prompt first."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def generate(self, prompts, *, sampling, max_new_tokens, seed, on_finish):
        for number in reversed(range(len(prompts))):
            token_ids = self.tokenizer.encode(f"{number}<|im_end|>")
            on_finish(number, Completion.from_tokens(self.tokenizer, prompts[number], token_ids, "stop"))


def test_rows_are_written_in_the_order_of_the_requests(tokenizer, tmp_path):
    requests = read_requests(write(tmp_path / "in.jsonl", *map(question, "abc")), tokenizer, enable_thinking=False)
    rows = []
    generate_rows(
        EngineFinishingBackwards(tokenizer), requests, rows.append, sampling=SamplingParams(), max_new_tokens=4
    )
    assert [(row["id"], row["response"]) for row in rows] == [(0, "0"), (1, "1"), (2, "2")]
    assert rows[0] == {"id": 0, "response": "0", "thinking": None, "finish_reason": "stop", "num_tokens": 2}
