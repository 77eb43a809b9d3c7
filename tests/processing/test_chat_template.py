"""Rendered chats against transformers', with both official templates and with our own."""

import itertools
import json
import re
from pathlib import Path

import pytest

from examples.quickstart import tokenizer as tiny_tokenizer
from qwen35_jax.processing import ChatTemplate, ChatTemplateError
from qwen35_jax.processing.chat_template import _check_conversation, normalize_message
from tests.conftest import PUBLISHED
from tests.processing.conversations import ASK, ERRORS, TEXT, VISION, assistant, system, user

OWN = Path(tiny_tokenizer.__file__).with_name("chat_template.jinja").read_text()
MODES = list(itertools.product([False, True], [None, True, False]))


def official(size):
    return (PUBLISHED / f"chat_template_{size}.jinja").read_bytes().decode()


@pytest.fixture(scope="module")
def reference(tiny_tokenizer_dir):
    """transformers' apply_chat_template for any template text."""
    transformers = pytest.importorskip("transformers")
    backend = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_dir)

    def render(source, messages, tools, add_generation_prompt=False, enable_thinking=None):
        mode = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        return backend.apply_chat_template(
            messages,
            tools=tools,
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **mode,
        )

    return render


def assert_same(source, reference, conversations):
    template = ChatTemplate(source)
    for name, (messages, tools) in conversations.items():
        for prompt, thinking in MODES:
            got = template.render(messages, tools=tools, add_generation_prompt=prompt, enable_thinking=thinking)
            assert got == reference(source, messages, tools, prompt, thinking), (name, prompt, thinking)


@pytest.mark.parametrize("size", ["2b_and_below", "4b_and_above"])
def test_official_templates_render_as_in_transformers(reference, size):
    assert len(TEXT) + len(VISION) >= 40
    assert_same(official(size), reference, TEXT | VISION)


def test_own_template_renders_as_in_transformers(reference):
    assert_same(OWN, reference, TEXT)


def test_own_template_equals_the_official_one():
    theirs, ours = ChatTemplate(official("2b_and_below")), ChatTemplate(OWN)
    for name, (messages, tools) in TEXT.items():
        for prompt, thinking in MODES:
            mode = {"tools": tools, "add_generation_prompt": prompt, "enable_thinking": thinking}
            assert ours.render(messages, **mode) == theirs.render(messages, **mode), (name, mode)


def refusal(render, failures):
    with pytest.raises(failures) as caught:
        render()
    return str(caught.value)


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("size", ["2b_and_below", "4b_and_above"])
def test_refusals_carry_the_words_transformers_shows(reference, size, name):
    messages, tools = ERRORS[name]
    source = official(size)
    jinja2 = pytest.importorskip("jinja2")
    theirs = refusal(lambda: reference(source, messages, tools), (jinja2.TemplateError, TypeError))
    ours = refusal(lambda: ChatTemplate(source).render(messages, tools=tools), ChatTemplateError)
    assert ours == f"The chat template refuses this conversation: {theirs}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown role", "Unexpected message role."),
        ("no user", "No user query found in messages."),
        ("late system", "System message must be at the beginning."),
        ("number content", "Unexpected content type."),
        ("unknown item", "Unexpected item type in content."),
        ("arguments as text", "Can only get item pairs from a mapping."),
    ],
)
def test_own_template_refuses_in_the_same_words(name, words):
    with pytest.raises(ChatTemplateError) as caught:
        ChatTemplate(OWN).render(ERRORS[name][0])
    assert str(caught.value).endswith(f": {words}")


def test_enable_thinking_switches_the_think_block_of_the_own_template():
    prompts = [
        ChatTemplate(OWN).render([ASK], add_generation_prompt=True, enable_thinking=on) for on in (None, True, False)
    ]
    tails = [prompt.rpartition("<|im_start|>assistant\n")[2] for prompt in prompts]
    assert tails == ["<think>\n\n</think>\n\n", "<think>\n", "<think>\n\n</think>\n\n"]


def test_messages_are_not_changed():
    messages = [ASK, assistant("4", thinking="t", name=None)]
    before = [dict(message) for message in messages]
    ChatTemplate(OWN).render(messages)
    assert messages == before


def test_unusual_inputs_are_refused():
    with pytest.raises(ChatTemplateError, match="empty conversation"):
        ChatTemplate(OWN).render([])
    for alone in ("hello", {"role": "user", "content": "hello"}):
        with pytest.raises(ChatTemplateError, match=r"a list of messages, not .*hello.*; write \[{\"role"):
            _check_conversation(alone)
    with pytest.raises(TypeError, match="must be a mapping with role and content, not 'hi'"):
        normalize_message("hi")
    with pytest.raises(ChatTemplateError, match=r"not valid jinja, line 2"):
        ChatTemplate("a\n{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ dict.__init__ }}{{ dict.mro() }}",
        "{% set ns = namespace(a=1) %}{% set ns._b = 2 %}",
        "{{ namespace(_a=1) }}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_the_sandbox_refuses_what_leads_out_of_it(source):
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source).render([ASK])


def test_templates_may_use_loops_dates_json_and_special_tokens():
    source = (
        "{% for message in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}"
        "{{ dict(a=1) | tojson }}{{ eos_token }}{{ strftime_now('%Y') | length }}{{ ['ä<'] | tojson(indent=1) }}"
    )
    text = ChatTemplate(source, {"eos_token": "</s>"}).render([system("s"), user("u")])
    assert text == 'u{"a": 1}</s>4[\n "ä<"\n]'


@pytest.mark.parametrize("depth", [2_000, 100_000])
def test_what_is_nested_too_deep_is_refused(depth):
    value = "bottom"
    for _ in range(depth):
        value = [value]
    template = ChatTemplate("{{ messages | tojson }}{{ tools | tojson }}")
    for arguments in ({"messages": [{"role": "user", "content": value}]}, {"messages": [ASK], "tools": [{"a": value}]}):
        with pytest.raises(ChatTemplateError, match="recursion"):
            template.render(**arguments)


@pytest.mark.parametrize("source", ["{{ 1 // 0 }}", "{{ messages[0].content[9] ~ 1.0 % 0 }}", "{{ 10 ** 400 * 1.5 }}"])
def test_arithmetic_errors_are_refusals(source):
    with pytest.raises(ChatTemplateError, match="The chat template refuses this conversation"):
        ChatTemplate(source).render([ASK])


def test_objects_become_placeholders():
    class Picture:
        def save(self):
            raise AssertionError("the template reached a method")

    source = "{{ messages[0].content[0].image }}"
    assert ChatTemplate(source).render([user([{"image": Picture()}])]) == "<Picture>"


@pytest.mark.parametrize("content", [b"\x89PNG", bytearray(9), memoryview(b"ab"), [b"frame"]])
def test_bytes_are_no_lists_of_numbers(content):
    source = "{{ messages[0].content[0].image }}"
    rendered = ChatTemplate(source).render([user([{"image": content}])])
    assert re.fullmatch(r"<\w+>|\['<bytes>'\]", rendered)


def test_keys_of_items_without_a_value_say_nothing():
    """Tables give each item the keys of all, and a template asks whether a key is there."""
    source = "{{ messages[0].content | tojson }}"
    items = [{"type": "text", "text": "4", "image": None}, {"type": "video_url", "video_url": {"url": "x"}}, "plain"]
    assert json.loads(ChatTemplate(source).render([user(items)])) == [
        {"type": "text", "text": "4"},
        {"type": "video", "video": {"url": "x"}},
        "plain",
    ]
    assert items[0]["image"] is None and "video_url" in items[1]


def test_numbering_is_left_undefined_unless_asked_for():
    source = "{{ add_vision_id is defined }}"
    assert ChatTemplate(source).render([ASK]) == "False"
    assert ChatTemplate(source).render([ASK], add_vision_id=True) == "True"
