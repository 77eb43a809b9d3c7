"""``data.train_on``: which turns of a conversation train, and in which documents."""

import pytest

from tests.processing.conversations import ASK, CLOCK, assistant, call, system, tool, user
from train.config.data import DataConfig
from train.data.forms import read_as
from train.data.masking import encode_conversations, render_conversation
from train.data.pipeline import make_batches
from train.data.rows import Conversation

TURNS = [
    system("Be brief."),
    user("1 + 1?"),
    assistant("2", reasoning_content="one and one"),
    user("2 + 2?"),
    assistant("4", reasoning_content="two and two"),
    user("And 3 + 3?"),
    assistant("6"),
]
STEPS = [
    ASK,
    assistant("Looking.", reasoning_content="first", tool_calls=[call("clock")]),
    tool("12:00"),
    assistant("Noon.", reasoning_content="second"),
    user("Sure?"),
    assistant(reasoning_content="third", tool_calls=[call("clock")]),
    tool("12:01"),
    assistant("Yes.", reasoning_content="fourth"),
]


def conversation(messages, tools=None):
    return read_as("messages", {"messages": messages, "tools": tools})


def trained(tokenizer, messages, **options):
    """Returns for each document its text, and what of it trains."""
    rendered = render_conversation(tokenizer.chat_template, conversation(messages), **options)
    return [
        (each.text, tokenizer.decode(example.input_ids[example.trained].tolist(), skip_special_tokens=False))
        for each, example in zip(rendered, encode_conversations(tokenizer, rendered), strict=True)
    ]


def as_used(tokenizer, messages, turn):
    """Returns the prompt that the model is given for a turn, and what it should write."""
    reasoning = messages[turn].get("reasoning_content")
    prompt = tokenizer.chat_template.render(
        messages[:turn], add_generation_prompt=True, enable_thinking=reasoning is not None
    )
    answer = tokenizer.chat_template.render(messages[: turn + 1]).removesuffix("\n")
    assert answer.startswith(prompt)
    return prompt, answer.removeprefix(prompt)


def test_each_turn_is_trained_as_it_is_when_the_model_is_used(tokenizer):
    documents = trained(tokenizer, TURNS, train_on="each")
    assert len(documents) == 3
    for (text, words), turn in zip(documents, (2, 4, 6), strict=True):
        prompt, answer = as_used(tokenizer, TURNS, turn)
        assert (text, words) == (f"{prompt}{answer}\n", answer)
    assert "one and one" not in documents[1][0]


def test_turns_between_which_tools_were_called_share_a_document(tokenizer):
    documents = trained(tokenizer, STEPS, train_on="each")
    assert len(documents) == 2
    for (text, words), turns in zip(documents, ((1, 3), (5, 7)), strict=True):
        used = [as_used(tokenizer, STEPS, turn) for turn in turns]
        assert words == "".join(answer for _, answer in used)
        assert all(text.startswith(prompt + answer) for prompt, answer in used)
    assert "first" not in documents[1][0]


def test_what_all_and_last_do_to_reasoning(tokenizer):
    [(text, words)] = trained(tokenizer, TURNS, train_on="all")
    assert words == "2<|im_end|>4<|im_end|>6<|im_end|>"
    assert "two and two" not in text
    [(last, words)] = trained(tokenizer, TURNS, train_on="last")
    assert (last, words) == (text, "6<|im_end|>")


@pytest.mark.parametrize(
    ("train_on", "weights", "expected"),
    [
        ("all", (0, 1, 1), ["4<|im_end|>6<|im_end|>"]),
        ("all", (1, 0, 0), ["2<|im_end|>"]),
        ("last", (0, 0, 1), ["6<|im_end|>"]),
        ("last", (1, 1, 0), []),
        ("each", (0, 1, 0), ["two and two\n</think>\n\n4<|im_end|>"]),
        ("each", (1, 0, 1), ["one and one\n</think>\n\n2<|im_end|>", "6<|im_end|>"]),
    ],
)
def test_turns_that_are_switched_off(tokenizer, train_on, weights, expected):
    places = dict(zip((2, 4, 6), weights, strict=True))
    messages = [m | ({"weight": places[i]} if i in places else {}) for i, m in enumerate(TURNS)]
    documents = trained(tokenizer, messages, train_on=train_on)
    assert [words for _, words in documents] == expected
    untouched = [text for text, _ in trained(tokenizer, TURNS, train_on=train_on)]
    assert all(text in untouched for text, _ in documents)


def test_a_step_before_a_tool_that_is_switched_off(tokenizer):
    messages = [STEPS[0], STEPS[1] | {"loss": 0}, *STEPS[2:4]]
    [(_, words)] = trained(tokenizer, messages, train_on="each")
    assert words == "second\n</think>\n\nNoon.<|im_end|>"


def test_no_document_where_nothing_trains(tokenizer):
    messages, tools, *_ = conversation(TURNS)
    for train_on in ("all", "last", "each"):
        nothing = Conversation(messages, tools, [False] * len(messages))
        assert render_conversation(tokenizer.chat_template, nothing, train_on=train_on) == []


def test_batches_of_each_turn(tokenizer, write_rows):
    rows = [{"messages": TURNS}, {"messages": STEPS, "tools": [CLOCK]}, {"messages": [ASK, assistant("4")]}]
    config = DataConfig(write_rows(rows), 8192, sequences_per_batch=1, epochs=1, train_on="each")
    iterator = make_batches(config, tokenizer)
    [batch] = iterator
    assert batch["segment_ids"].max() == 3 + 2 + 1
    assert iterator.report()["documents"] == 3
    words = tokenizer.decode(batch["input_ids"][batch["trained"]].tolist(), skip_special_tokens=False)
    for thought in ("one and one", "two and two", "first", "second", "third", "fourth"):
        assert words.count(thought) == 1


def test_a_turn_that_is_too_long_is_left_out_alone(tokenizer, write_rows):
    messages = [ASK, assistant("4"), user("And then? " * 60), assistant("5")]
    config = DataConfig(write_rows([{"messages": messages}]), 128, sequences_per_batch=1, epochs=1, train_on="each")
    iterator = make_batches(config, tokenizer)
    [batch] = iterator
    assert tokenizer.decode(batch["input_ids"][batch["trained"]].tolist()) == "4"
    assert iterator.report()["dropped"] == {"too_long": 1}


def test_any_interruption_continues_exactly(tokenizer, write_rows):
    rows = [{"messages": [*TURNS[: 3 + 2 * (n % 3)], user(f"{n}?"), assistant(f"{n}.")]} for n in range(20)]
    config = DataConfig(write_rows(rows), 128, sequences_per_batch=2, train_on="each", open_sequences=3)
    whole = make_batches(config, tokenizer)
    states, want = [], []
    for _ in range(12):
        states.append(whole.get_state())
        want.append(next(whole))
    resumed = make_batches(config, tokenizer)
    for done in (1, 5, 9):
        resumed.set_state(states[done])
        for batch in want[done:]:
            got = next(resumed)
            assert all((got[name] == batch[name]).all() for name in batch)
