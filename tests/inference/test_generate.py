"""Reading conversations, telling reasoning from answers, and text that grows token by token."""

import json

import pytest

from qwen35_jax.inference.generate import generate_rows, in_order, read_requests, row_of
from qwen35_jax.inference.requests import Completion, TokenLogprobs, seed_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing.thinking import ThinkingStream, opens_thinking, split_tokens
from tests.inference.scripted import ScriptedEngine


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
        ([{**question(), "text": "a"}], "line 1.*one of the two"),
        ([{"messages": [{"role": "user", "contents": "a"}]}], "line 1: message 0 has no content"),
        ([{**question(), "tools": "calc"}], "line 1.*no list of objects"),
        ([], "no rows"),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}]}],
            "only text is read here",
        ),
        ([{**question(), "id": "\ud83d"}], "line 1.*surrogates"),
    ],
)
def test_wrong_rows_are_named(tokenizer, tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_requests(write(tmp_path / "in.jsonl", *rows), tokenizer, enable_thinking=None)


def test_rows_come_in_any_order_and_in_order_where_asked(tokenizer, tmp_path):
    requests = read_requests(write(tmp_path / "in.jsonl", *map(question, "abc")), tokenizer, enable_thinking=False)
    places, rows = [], []
    answers = [f"{letter}<|im_end|>" for letter in "cba"]
    settings = {"sampling": SamplingParams(), "max_new_tokens": 4}
    generate_rows(ScriptedEngine(tokenizer, answers), requests, lambda place, _: places.append(place), **settings)
    generate_rows(ScriptedEngine(tokenizer, answers), requests, in_order(rows.append), **settings)
    assert places == [2, 1, 0]
    assert [(row["id"], row["response"]) for row in rows] == [(0, "a"), (1, "b"), (2, "c")]
    assert rows[0] == {"id": 0, "response": "a", "thinking": None, "finish_reason": "stop", "num_tokens": 2}


def test_a_rows_seed_depends_on_its_place_alone(tokenizer, tmp_path):
    requests = read_requests(write(tmp_path / "in.jsonl", *map(question, "abc")), tokenizer, enable_thinking=False)
    engine, rest = ScriptedEngine(tokenizer, "uvwxyz"), ScriptedEngine(tokenizer, "uvw")
    rows = {}
    settings = {"sampling": SamplingParams(), "max_new_tokens": 4, "seed": 5, "samples": 2}
    generate_rows(engine, requests, rows.__setitem__, **settings)
    generate_rows(rest, requests, rows.__setitem__, done=(0, 2, 3), **settings)
    assert engine.seeds == [seed_of(5, place) for place in reversed(range(6))] and len(set(engine.seeds)) == 6
    assert rest.seeds == [engine.seeds[place] for place in (0, 1, 4)]
    assert [(row["id"], row["repeat"]) for _, row in sorted(rows.items())] == [(i, j) for i in range(3) for j in (0, 1)]


def test_a_row_says_what_the_budget_did_and_how_likely_its_tokens_were():
    likely = TokenLogprobs(model=-0.5, sampling=-0.25, top=((7, -0.5), (9, -1.5)))
    completion = Completion([7], "", "x", "x", "budget", 2, closed_by_budget=True, logprobs=[likely])
    row = json.loads(json.dumps(row_of("id", completion)))
    assert (row["multiple_closes"], row["closed_by_budget"], row["finish_reason"]) == (2, True, "budget")
    assert row["logprobs"] == [{"token_id": 7, "model": -0.5, "sampling": -0.25, "top": [[7, -0.5], [9, -1.5]]}]
