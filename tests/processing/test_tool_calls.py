"""Tool calls: the format by example, what the real chat template writes read back, and a public parser beside ours."""

import random
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen35_jax.processing import ChatTemplate, Tokenizer
from qwen35_jax.processing.thinking import ThinkingStream
from qwen35_jax.processing.tool_calls import ToolCall, ToolCallStream
from tests.conftest import PUBLISHED
from tests.processing.conversations import ASK, WEATHER, assistant, call

TEMPLATE = ChatTemplate((PUBLISHED / "chat_template_2b_and_below.jinja").read_bytes().decode())
TYPES = {"text": "string", "count": "integer", "size": "number", "flag": "boolean", "items": "array", "map": "object"}


def tool(name, closed=False, **properties):
    parameters = {"type": "object", "properties": properties} | ({"additionalProperties": False} if closed else {})
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("f", **{name: {"type": kind} for name, kind in TYPES.items()}),
    tool("strict", True, x={"type": "string"}),
]


@pytest.fixture(scope="module")
def tokenizer(official_tokenizer_dir):
    return Tokenizer.from_pretrained(official_tokenizer_dir)


def one(name, **values):
    """A whole call as the format has it."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def joined(items):
    """Pieces of text that follow each other as one."""
    whole = []
    for item in items:
        if isinstance(item, str) and whole and isinstance(whole[-1], str):
            whole[-1] += item
        else:
            whole.append(item)
    return whole


def parse(tokenizer, ids, tools=TOOLS, *, opened=False, late=lambda: False):
    """What the parser gives out behind the stream of sections, as a server runs the two.

    Args:
      late: asked at each token whether its text comes with the next one.
    """
    sections, calls = ThinkingStream(tokenizer, opened=opened), ToolCallStream(tokenizer, tools)
    found, waiting = [], ""
    for token in ids:
        section, text = sections.push(token)
        if section == "answer":
            waiting += text
            given, waiting = ("", waiting) if late() else (waiting, "")
            found += calls.push(token, given)
    section, text = sections.flush()
    end = waiting + text if section == "answer" else ""
    return joined([*found, *calls.push(tokenizer.pad_token_id, end), *calls.flush()])


def parse_text(tokenizer, text, **settings):
    return parse(tokenizer, tokenizer.encode(text), **settings)


def f(**arguments):
    return ToolCall("f", arguments)


CASES = {
    "no call": ("Just text.\n", ["Just text.\n"]),
    "nothing": ("", []),
    "one call": (one("f", text="a"), [f(text="a")]),
    "no parameters": (one("f"), [f()]),
    "unknown tool": (one("g", x="1", y="one"), [ToolCall("g", {"x": 1, "y": "one"})]),
    "text before": ("Let me look.\n\n" + one("f", count="3"), ["Let me look.", f(count=3)]),
    "two calls": (one("f", count="1") + "\n" + one("f", count="2"), [f(count=1), f(count=2)]),
    "text between and after": (
        f"a {one('f')}\n b \n{one('f')}\n\nc\n",
        ["a", f(), "b", f(), "c\n"],
    ),
    "white space after": (one("f") + "\n\n", [f()]),
    "all on one line": (
        "<tool_call><function=f><parameter=text>a</parameter><parameter=count>2</parameter></function></tool_call>",
        [f(text="a", count=2)],
    ),
    # Values are raw: none of these marks ends anything.
    "closer of a parameter": (one("f", text="a</parameter>b", count="1"), [f(text="a</parameter>b", count=1)]),
    "closer at the end": (one("f", text="a\n</parameter>"), [f(text="a\n</parameter>")]),
    "closer of a call": (one("f", text="a</tool_call>b"), [f(text="a</tool_call>b")]),
    "closer of a function": (one("f", text="</function>"), [f(text="</function>")]),
    "closers of function and call": (
        one("f", text="x\n</function>\n</tool_call>\ny"),
        [f(text="x\n</function>\n</tool_call>\ny")],
    ),
    "closers of parameter and call": (
        one("f", text="</parameter>\n</tool_call>"),
        [f(text="</parameter>\n</tool_call>")],
    ),
    "opener of a call": (one("f", text="<tool_call>\n<function=g>"), [f(text="<tool_call>\n<function=g>")]),
    "tag of a parameter": (one("f", text="<parameter=count>\n1"), [f(text="<parameter=count>\n1")]),
    "tag of the same parameter": (
        one("f", text="</parameter>\n<parameter=text>"),
        [f(text="</parameter>\n<parameter=text>")],
    ),
    "tag that a closed schema lacks": (
        one("strict", x="</parameter>\n<parameter=y>"),
        [ToolCall("strict", {"x": "</parameter>\n<parameter=y>"})],
    ),
    "XML and entities": (one("f", text="<a b='c'>&lt;</a>"), [f(text="<a b='c'>&lt;</a>")]),
    "white space in a value": (one("f", text="\n  a\n\n"), [f(text="\n  a\n\n")]),
    "empty value": (one("f", text=""), [f(text="")]),
    # What is no whole call is text.
    "cut in a value": ("a\n" + one("f", text="b")[:-40], ["a\n" + one("f", text="b")[:-40]]),
    "cut before the end": (one("f", text="b")[:-12], [one("f", text="b")[:-12]]),
    "cut after a call": (one("f") + "\n<tool_call>\n", [f(), "<tool_call>\n"]),
    "mark in prose": ("Write <tool_call> first, </tool_call> last.", ["Write <tool_call> first, </tool_call> last."]),
    "JSON of another format": (
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        ['<tool_call>\n{"name": "f"}\n</tool_call>'],
    ),
    "call after a broken one": ("<tool_call>\n<tool_call>\nx" + one("f"), ["<tool_call>\n<tool_call>\nx", f()]),
    "call after an empty one": ("<tool_call></tool_call>" + one("f"), ["<tool_call></tool_call>", f()]),
    "text after the function": (
        "<tool_call><function=f></function>so</tool_call>",
        ["<tool_call><function=f></function>so</tool_call>"],
    ),
    "name without end": ("<tool_call><function=f\n></tool_call>", ["<tool_call><function=f\n></tool_call>"]),
    "no name": ("<tool_call><function=></function></tool_call>", ["<tool_call><function=></function></tool_call>"]),
}


@pytest.mark.parametrize(("text", "want"), CASES.values(), ids=CASES)
def test_format_by_example(tokenizer, text, want):
    assert parse_text(tokenizer, text) == want


@pytest.mark.parametrize("text", [text for text, _ in CASES.values()], ids=CASES)
def test_text_may_come_later_than_its_tokens_and_an_answer_may_end_anywhere(tokenizer, text):
    ids, rng = tokenizer.encode("é😀" + text), random.Random(0)
    for end in {len(ids), *rng.sample(range(len(ids)), 3)}:
        at_once = parse(tokenizer, ids[:end], late=lambda: True)
        assert parse(tokenizer, ids[:end]) == at_once
        assert parse(tokenizer, ids[:end], late=lambda: rng.random() < 0.7) == at_once


@pytest.mark.parametrize("text", [text for text, _ in CASES.values()], ids=CASES)
def test_what_is_given_out_early_is_never_taken_back(tokenizer, text):
    ids, want = tokenizer.encode(text), parse_text(tokenizer, text)
    calls, given = ToolCallStream(tokenizer, TOOLS), []
    for token in ids:
        given += calls.push(token, tokenizer.decode([token]))
        so_far = joined(given)
        assert so_far[:-1] == want[: max(len(so_far) - 1, 0)]
        if so_far:
            last, final = so_far[-1], want[len(so_far) - 1]
            assert final.startswith(last) if isinstance(last, str) else final == last


def test_text_and_calls_come_as_soon_as_they_are_certain(tokenizer):
    calls = ToolCallStream(tokenizer, TOOLS)
    open_id, close_id = tokenizer.token_id("<tool_call>"), tokenizer.token_id("</tool_call>")
    assert calls.push(0, "See:\n") == ["See:"]
    assert calls.push(open_id, "<tool_call>") == []
    assert calls.push(0, "\n<function=f>\n</function>\n") == []
    assert calls.push(close_id, "</tool_call>") == [f()]
    assert calls.push(0, "\n") == []
    assert calls.push(open_id, "<tool_call>") == []
    assert calls.push(0, " is a mark") == ["<tool_call> is a mark"]


def test_a_mark_that_other_tokens_spell_begins_no_call(tokenizer):
    text = one("f", text="a")
    ids = tokenizer.encode("<tool") + tokenizer.encode(text.removeprefix("<tool"))
    assert parse(tokenizer, ids) == [text]


@pytest.mark.parametrize("end", ["", "\n</think>\n\n"])
def test_a_call_in_the_thinking_is_not_a_call(tokenizer, end):
    thought, answer = one("f", text="thought"), one("f", text="answer") if end else ""
    assert parse_text(tokenizer, thought + end + answer, opened=True) == ([f(text="answer")] if end else [])


def test_tools_without_a_wrapper_or_a_schema_are_taken(tokenizer):
    tools = [WEATHER["function"], {"name": "clock"}]
    text = one("get_weather", city="12") + one("clock", zone="1")
    want = [ToolCall("get_weather", {"city": "12"}), ToolCall("clock", {"zone": 1})]
    assert parse_text(tokenizer, text, tools=tools) == want


@pytest.mark.parametrize("wrong", [{"type": "function", "function": {}}, {"name": "f", "parameters": ["x"]}])
def test_a_tool_without_name_or_schema_is_refused(tokenizer, wrong):
    with pytest.raises(ValueError, match=r"(?s)is not known by a name and a schema; give .*properties"):
        ToolCallStream(tokenizer, [*TOOLS, wrong])


# Round trips: what the chat template writes, read back.
_NEXT = re.compile(r"</parameter>\s*(<parameter=[^<>\n]+>|</function>\s*</tool_call>)")
_MARKS = (
    "</parameter>",
    "</function>",
    "</tool_call>",
    "<tool_call>",
    "<function=f>",
    "<parameter=p>",
    "\n",
    " ",
    "&",
    '"',
)
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=8).map(
    lambda text: unicodedata.normalize("NFC", text)
)
strings = st.lists(words | st.sampled_from(_MARKS), max_size=6).map("".join).filter(lambda text: not _NEXT.search(text))
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words
trees = st.lists(leaves, max_size=3) | st.dictionaries(words, leaves, max_size=3) | leaves
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SCHEMAS = [
    ({"type": "string"}, strings),
    ({"type": "integer"}, st.integers()),
    ({"type": "number"}, numbers),
    ({"type": "array"}, st.lists(trees, max_size=3)),
    ({"type": "object"}, st.dictionaries(words, trees, max_size=3)),
    ({"anyOf": [{"type": "integer"}, {"type": "array"}]}, st.integers() | st.lists(trees, max_size=2)),
    ({"type": "boolean"}, st.booleans()),
    ({"type": "null"}, st.none()),
    ({"type": ["number", "null"]}, numbers | st.none()),
    ({"anyOf": [{"type": "object"}, {"type": "null"}]}, st.dictionaries(words, trees, max_size=2) | st.none()),
]
names = st.from_regex(r"[A-Za-z_é][\w.-]{0,8}", fullmatch=True).map(lambda text: unicodedata.normalize("NFC", text))


@st.composite
def used_tools(draw, schemas=tuple(SCHEMAS)):
    """Tools, each with arguments of one call of it."""
    used = []
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        kinds = draw(st.dictionaries(names, st.sampled_from(schemas), max_size=4))
        arguments = {key: draw(values) for key, (_, values) in kinds.items()}
        used.append((tool(name, **{key: schema for key, (schema, _) in kinds.items()}), name, arguments))
    return used


def rendered(used, content):
    """The assistant's turn, from its think block on, as the real template writes it."""
    calls = [call(name) | {"function": {"name": name, "arguments": arguments}} for _, name, arguments in used]
    text = TEMPLATE.render([ASK, assistant(content, tool_calls=calls)])
    return text.rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")


@settings(max_examples=60, deadline=None)
@given(used_tools(), words.map(str.strip), st.randoms(use_true_random=False))
def test_what_the_template_writes_is_read_back(tokenizer, used, content, rng):
    ids = tokenizer.encode(rendered(used, content))
    got = parse(tokenizer, ids, [definition for definition, _, _ in used], late=lambda: rng.random() < 0.3)
    assert got == ([content] if content else []) + [ToolCall(name, arguments) for _, name, arguments in used]
    types = [[type(value) for value in item.arguments.values()] for item in got if isinstance(item, ToolCall)]
    assert types == [[type(value) for value in arguments.values()] for _, _, arguments in used]


# The public parser strips values and ends them at the first closing mark, so it is given neither.
_plain = (({"type": "string"}, words.map(str.strip)), *SCHEMAS[1:6])


class Adapted:
    """Our tokenizer with the arguments that the public parser gives."""

    def __init__(self, tokenizer):
        self.decode = tokenizer.decode
        self._encode = tokenizer.encode

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return self._encode(text)


def public_parse(tokenizer, text, tools):
    """The text before the first call, and the calls, as ``renderers`` reads them."""
    parsing = pytest.importorskip("renderers.parsing", reason="renderers is a reference, not a requirement")
    marks = {"think_id": "<think>", "think_end_id": "</think>"}
    marks |= {"tool_call_id": "<tool_call>", "tool_call_end_id": "</tool_call>"}
    ids = {argument: tokenizer.token_id(mark) for argument, mark in marks.items()}
    stop_ids = set(tokenizer.eos_token_ids)
    parsed = parsing.parse_qwen35(Adapted(tokenizer), tokenizer.encode(text), stop_ids=stop_ids, tools=tools, **ids)
    return parsed.content, [ToolCall(made.name, made.arguments) for made in parsed.tool_calls]


def our_parse(tokenizer, text, tools):
    items = parse_text(tokenizer, text, tools=tools)
    return "".join(item for item in items if isinstance(item, str)), [i for i in items if isinstance(i, ToolCall)]


@settings(max_examples=40, deadline=None)
@given(used_tools(_plain), words.map(str.strip))
def test_calls_are_those_of_a_public_parser(tokenizer, used, content):
    text, tools = rendered(used, content), [definition for definition, _, _ in used]
    assert our_parse(tokenizer, text, tools) == public_parse(tokenizer, text, tools)


@pytest.mark.parametrize(
    "text",
    [
        "Just text.",
        "So:\n\n" + one("f", flag="true", count="12", size="1.5e3", items="[1, null]", map='{"a": "b"}'),
        one("f", count="twelve", flag="maybe", items="1, 2"),
        one("f", text="12") + one("f", text="true"),
        one("g", x="1", y="one", z="null") + "\n" + one("f"),
        "<tool_call><function=f><parameter=text>a</parameter><parameter=count>2</parameter></function></tool_call>",
    ],
)
def test_examples_are_read_as_by_a_public_parser(tokenizer, text):
    assert our_parse(tokenizer, text, TOOLS) == public_parse(tokenizer, text, TOOLS)
