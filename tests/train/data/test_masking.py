"""Which characters of a conversation train, checked on text and against the generation prompt."""

import random
from functools import partial

import numpy as np
import pytest

from qwen35_jax.processing import ChatTemplate, Tokenizer
from tests.processing.conversations import ASK, TEXT, assistant, call, system, tool, user
from train.data.forms import read_as
from train.data.masking import encode_conversations, encode_text, render_conversation, trained_spans
from train.data.rows import RowError, check_row, control_tokens

TURNS = [
    system("Be brief."),
    user("What is 1 + 1?"),
    assistant("2", reasoning_content="dropped"),
    user("And 2 + 2?"),
    assistant("4", reasoning_content="two and two"),
]
STEPS = [
    ASK,
    assistant("Looking.", reasoning_content="first", tool_calls=[call("clock", zone="UTC")]),
    tool("12:00"),
    assistant("Noon.", reasoning_content="second"),
]
CALL = "\n\n<tool_call>\n<function=clock>\n<parameter=zone>\nUTC\n</parameter>\n</function>\n</tool_call>"


def encode_conversation(tokenizer, messages, tools=None, **options):
    [example] = encode_conversations(tokenizer, render(tokenizer.chat_template, messages, tools, **options))
    return example


def render(template, messages, tools=None, **options):
    return render_conversation(template, read_as("messages", {"messages": messages, "tools": tools}), **options)


def trained_text(tokenizer, messages, **options):
    example = encode_conversation(tokenizer, messages, **options)
    assert example.input_ids.dtype == np.int32
    assert example.trained.dtype == bool
    assert example.input_ids.tolist() == tokenizer.encode(tokenizer.chat_template.render(messages))
    runs = np.flatnonzero(np.diff(np.concatenate([[False], example.trained, [False]])))
    return [
        tokenizer.decode(example.input_ids[start:end].tolist(), skip_special_tokens=False)
        for start, end in runs.reshape(-1, 2).tolist()
    ]


@pytest.mark.parametrize(
    ("train_on", "train_on_thinking", "expected"),
    [
        ("all", True, ["2<|im_end|>", "two and two\n</think>\n\n4<|im_end|>"]),
        ("all", False, ["2<|im_end|>", "4<|im_end|>"]),
        ("last", True, ["two and two\n</think>\n\n4<|im_end|>"]),
        ("last", False, ["4<|im_end|>"]),
    ],
)
def test_turns(tokenizer, train_on, train_on_thinking, expected):
    assert trained_text(tokenizer, TURNS, train_on=train_on, train_on_thinking=train_on_thinking) == expected


@pytest.mark.parametrize(
    ("train_on", "train_on_thinking", "expected"),
    [
        ("all", True, [f"first\n</think>\n\nLooking.{CALL}<|im_end|>", "second\n</think>\n\nNoon.<|im_end|>"]),
        ("all", False, [f"Looking.{CALL}<|im_end|>", "Noon.<|im_end|>"]),
        ("last", True, ["second\n</think>\n\nNoon.<|im_end|>"]),
    ],
)
def test_tool_steps(tokenizer, train_on, train_on_thinking, expected):
    assert trained_text(tokenizer, STEPS, train_on=train_on, train_on_thinking=train_on_thinking) == expected


@pytest.mark.parametrize("train_on_thinking", [True, False])
@pytest.mark.parametrize("answer", [{}, {"reasoning_content": ""}, {"reasoning_content": " \n"}])
def test_an_empty_think_block_is_prompt(tokenizer, answer, train_on_thinking):
    messages = [ASK, assistant("4", **answer)]
    assert trained_text(tokenizer, messages, train_on_thinking=train_on_thinking) == ["4<|im_end|>"]


def check_against_prompt(tokenizer, reasoning):
    messages = [ASK, assistant("4 apples", reasoning_content=reasoning)]
    example = encode_conversation(tokenizer, messages)
    prompt = tokenizer.encode_chat([ASK], enable_thinking=bool(reasoning))
    # What is trained begins where the generation prompt ends, and all but the last newline is trained from there.
    assert example.input_ids[: len(prompt)].tolist() == prompt
    assert np.flatnonzero(example.trained).tolist() == [*range(len(prompt), len(example) - 1)]
    assert tokenizer.decode(example.input_ids[-1:].tolist()) == "\n"


@pytest.mark.parametrize("reasoning", ["", "Two.\n\nAnd two."])
def test_training_starts_where_generation_does(tokenizer, reasoning):
    check_against_prompt(tokenizer, reasoning)


@pytest.mark.parametrize("reasoning", ["", "Two.\n\nAnd two."])
def test_training_starts_where_generation_does_with_the_official_tokenizer(official_tokenizer_dir, reasoning):
    check_against_prompt(Tokenizer.from_pretrained(official_tokenizer_dir), reasoning)


def test_every_usable_conversation_trains_its_answers(tokenizer):
    control = control_tokens(tokenizer)
    judged = 0
    for messages, tools in TEXT.values():
        try:
            conversation = read_as("messages", {"messages": messages, "tools": tools})
            check_row(conversation, control)
        except RowError:
            continue
        judged += 1
        text = tokenizer.chat_template.render(conversation.messages, tools=tools)
        example = encode_conversation(tokenizer, messages, tools, train_on_thinking=False)
        wanted = "".join(text[start:end] for start, end in trained_spans(text, train_on_thinking=False))
        assert tokenizer.decode(example.input_ids[example.trained].tolist(), skip_special_tokens=False) == wanted
        assert wanted.count("<|im_end|>") == sum(message["role"] == "assistant" for message in messages)
    assert judged > 15


def test_any_characters(tokenizer):
    rng = random.Random(0)
    pieces = [
        "a",
        " ",
        "\n",
        "\u0301",
        "é",
        "👨‍👩",
        "\u1112\u1161",
        ".",
        "'s",
        "1",
        "\t",
        "<",
        "|",
        "毛",
        "\u00a0",
        "\u200b",
    ]
    for _ in range(200):
        said, reasoning = ("x" + "".join(rng.choices(pieces, k=12)) + "y" for _ in range(2))
        messages = [user(said), assistant(said, reasoning_content=reasoning)]
        [got] = trained_text(tokenizer, messages)
        expected = tokenizer.encode(f"{reasoning}\n</think>\n\n{said}<|im_end|>")
        assert tokenizer.encode(got) == expected


def test_a_template_without_the_marks_is_refused(tokenizer):
    template = ChatTemplate("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    with pytest.raises(ValueError, match="renders 1 assistant turns with 0 headers"):
        render(template, [ASK, assistant("4")])


def test_several_at_a_time_are_as_one_by_one(tokenizer):
    rendered = [*map(partial(render, tokenizer.chat_template), (TURNS, STEPS, TURNS[:3]))]
    rendered = [text for [text] in rendered]
    for together, alone in zip(encode_conversations(tokenizer, rendered), rendered, strict=True):
        [example] = encode_conversations(tokenizer, [alone])
        assert together.input_ids.tolist() == example.input_ids.tolist()
        assert together.trained.tolist() == example.trained.tolist()
    assert encode_conversations(tokenizer, []) == []


@pytest.mark.parametrize("length", [4, 7, 1000])
def test_text_is_cut_into_consecutive_pieces(tokenizer, length):
    text = "What is 12 + 34? The answer is 46."
    pieces = encode_text(tokenizer, text, max_length=length)
    ids = [token for piece in pieces for token in piece.input_ids.tolist()]
    assert ids == [*tokenizer.encode(text), tokenizer.token_id("<|endoftext|>")]
    assert all(len(piece) == length for piece in pieces[:-1])
    for piece in pieces:
        assert piece.trained.tolist() == [False] + [True] * (len(piece) - 1)
