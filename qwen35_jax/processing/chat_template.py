"""A checkpoint's own chat template, rendered in the sandbox that transformers uses.

A template is code from the hub. It runs in jinja2's immutable sandbox, and it is handed plain JSON values only, so that
it finds no method to call. What transformers does to a conversation before the template sees it is done here too, in
the same order: keys whose value is None are dropped, and reasoning that arrives under an older name is copied to
``reasoning_content``.

Source: ``apply_chat_template`` and ``utils/chat_template_utils.py`` of transformers 5.23. It does not support tools
given as Python functions, ``documents``, or the continuation of the last message.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""The names under which datasets carry a message's reasoning; templates read the first."""

# What a template can raise besides jinja2's own errors: its filters and operators are Python's. A RuntimeError is
# Python's for a conversation that is nested too deep.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError
)  # fmt: skip


class ChatTemplateError(ValueError):
    """A template cannot be compiled, or refuses a conversation; the message holds the template's own words."""


class ChatTemplate:
    """One compiled chat template; rendering is thread-safe."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None):
        """Compiles a template.

        Args:
          source: the jinja text, e.g. the content of ``chat_template.jinja``.
          special_tokens: variables that the template may read, such as ``eos_token``.

        Raises:
          ChatTemplateError: the text is not valid jinja.
        """
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as err:
            raise ChatTemplateError(f"The chat template is not valid jinja, line {err.lineno}: {err.message}") from err

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
        add_vision_id: bool = False,
    ) -> str:
        """Renders a conversation. Each image and video becomes one placeholder of three tokens.

        Args:
          messages: ``{"role", "content", ...}`` in order; a content is a string, a list of items, or None.
          tools: JSON schemas of the functions that the model may call.
          add_generation_prompt: append the header of the assistant's next turn.
          enable_thinking: whether that turn starts inside a think block. None leaves the variable undefined, so that
            the template's own default applies (off up to 2B, on from 4B).
          add_vision_id: number them before the placeholder: ``Picture 1: ``, ``Video 1: ``.

        Raises:
          ChatTemplateError: the template refuses the conversation, or fails on it.
        """
        _check_conversation(messages)
        variables: dict[str, Any] = dict(self._special_tokens)
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        if add_vision_id:
            variables["add_vision_id"] = True
        try:
            return self._template.render(
                messages=[normalize_message(message) for message in messages],
                tools=_plain(tools),
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except _TEMPLATE_FAILURES as err:
            raise ChatTemplateError(f"The chat template refuses this conversation: {err}") from err


def _check_conversation(messages: Any) -> None:
    if isinstance(messages, (str, Mapping)):
        raise ChatTemplateError(
            f'A conversation is a list of messages, not {messages!r:.40}; write [{{"role": "user", "content": TEXT}}].'
        )
    if not messages:
        raise ChatTemplateError("An empty conversation cannot be rendered: give at least one message.")


def normalize_message(message: Any) -> dict[str, Any]:
    """Returns the message as the template will see it: plain values, no None keys, reasoning under its usual name.

    Raises:
      TypeError: the message is not a mapping.
    """
    if not isinstance(message, Mapping):
        raise TypeError(f"a message must be a mapping with role and content, not {message!r}")
    plain = {str(key): _plain(value) for key, value in with_tidy_items(message).items() if value is not None}
    reasoning = next((plain[key] for key in REASONING_KEYS if key in plain), None)
    if reasoning is not None:
        # ``thinking`` is filled as well because some templates read that name.
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def with_tidy_items(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the message with the items of its content as a template can read them.

    A key without a value is treated as absent: tables give every item every key. A template knows ``video``, and
    ``video_url`` is the same. A Pillow image, an array or bytes stay what they are.
    """
    content = message.get("content")
    if isinstance(content, (str, bytes)) or not isinstance(content, Sequence):
        return message
    return {**message, "content": [_tidy_item(item) for item in content]}


def _tidy_item(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    tidy = {key: value for key, value in item.items() if value is not None}
    if "video_url" in tidy:
        video = tidy.pop("video_url")
        tidy = {"video": video, **tidy, "type": "video"}
    return tidy


def _plain(value: Any) -> Any:
    """Rebuilds a value out of JSON types; what is not JSON (an image, an array) becomes a placeholder string."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for base in (str, int, float):  # subclasses such as enums carry methods of their own
        if isinstance(value, base):
            return base(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    # The bytes of a file are a sequence too: of as many numbers.
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


class _GenerationTag(jinja2.ext.Extension):
    """Accepts ``{% generation %} ... {% endgeneration %}`` and renders what is inside.

    Some templates mark the assistant's words with it; loss spans here come from offsets and need no marks.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads this class attribute

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _TemplateDict:
    """The ``dict`` global without the attributes of the class, which would lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)


class _TemplateNamespace(jinja2.utils.Namespace):
    """The ``namespace`` global without underscore attributes, which would lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any):
        # jinja2's own signature: `self` is positional so that a template may write namespace(self=...).
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a template may not store the underscore attribute {name!r}")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    # jinja2 has no type for its globals, and one inferred from its defaults is too narrow.
    names = cast(dict[str, Any], environment.globals)
    names["raise_exception"] = _raise_exception
    names["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    names["dict"] = _TemplateDict()
    names["namespace"] = _TemplateNamespace
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replaces jinja2's filter, which escapes HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
