"""What a model that has lost its way writes for ever must not hold up the reader of tool calls."""

import time

import pytest

from qwen35_jax.processing.tool_calls import LONGEST_HEAD, MOST_CLOSES, ToolCall, ToolCallStream
from tests.processing.test_tool_calls import TOOLS, one, parse_text

LOST = {
    "white space in an answer": " \n",
    "white space in a call": "<tool_call> \n",
    "the name of a function": "<tool_call><function=ab",
    "the name of a parameter": "<tool_call><function=f><parameter=ab",
    "white space before a parameter": "<tool_call><function=f> \n",
    "white space after a function": "<tool_call><function=f></function> \n",
    "closing marks": "<tool_call><function=f><parameter=a></tool_call></tool_call>",
    "almost calls": "<tool_call><function=f><parameter=a></function></tool_call></function></tool_call>",
    "a value": "<tool_call><function=f><parameter=a>word </parameter> ",
}


@pytest.mark.parametrize("name", LOST)
def test_what_a_lost_model_writes_for_ever_takes_linear_time(tiny_tokenizer, name):
    """40 times the tokens take 40 times as long; in quadratic time it would be 1,600."""
    ids = tiny_tokenizer.encode(LOST[name])

    def seconds(count):
        calls = ToolCallStream(tiny_tokenizer, TOOLS)
        tokens = [*ids, *(ids[-2:] * count)]
        decoded = {token: tiny_tokenizer.decode([token]) for token in set(tokens)}
        texts = [decoded[token] for token in tokens]
        start = time.process_time()
        found = [piece for token, text in zip(tokens, texts, strict=True) for piece in calls.push(token, text)]
        found += calls.flush()
        taken = time.process_time() - start
        assert "".join(found) == "".join(texts)
        return taken

    assert seconds(12_000) < 250 * seconds(300)


def test_limits_of_a_call_hold_however_its_text_arrives(tiny_tokenizer):
    for padding, is_call in ((LONGEST_HEAD // 2, True), (LONGEST_HEAD, False)):
        text = f"<tool_call>{chr(10) * padding}<function=f>{chr(10)}</function>{chr(10)}</tool_call>"
        found = parse_text(tiny_tokenizer, text)
        assert found == ([ToolCall("f", {})] if is_call else [text])
        assert parse_text(tiny_tokenizer, text, late=lambda: True) == found
    for closes, is_call in ((MOST_CLOSES - 1, True), (MOST_CLOSES, False)):
        text = one("f", text="</tool_call>" * closes)
        found = parse_text(tiny_tokenizer, text)
        assert found == ([ToolCall("f", {"text": "</tool_call>" * closes})] if is_call else [text])
        assert parse_text(tiny_tokenizer, text, late=lambda: True) == found
