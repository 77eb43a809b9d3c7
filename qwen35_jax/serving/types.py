"""What a client may ask for: the bodies of requests, checked field by field.

The fields are those of OpenAI's protocol, and the settings of ``SamplingParams`` besides. A field that is not known is
an error: passed over in silence, a mistyped ``temprature`` would change results and nobody would see it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from qwen35_jax.inference.sampling import MAX_LOGPROBS, BudgetClose, SamplingParams
from qwen35_jax.presets import CardSampling
from qwen35_jax.serving.errors import RequestError
from qwen35_jax.serving.parts import MEDIA_PARTS, PART_TYPES, Checked, ContentPart, TextPart
from qwen35_jax.wording import did_you_mean

MAX_CHOICES = 128
MAX_PROMPTS = 1024

# What an official client sends for the parts of an earlier answer that it did not get.
Absent = Annotated[None, Field(default=None)]
Identifier = Annotated[str, Field(max_length=256)]
StopText = Annotated[str, Field(max_length=256)]
ToolName = Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]

T = TypeVar("T", bound=BaseModel)
Item = TypeVar("Item")
# A list with a million wrong entries is refused for the first one.
Items = Annotated[list[Item], Field(fail_fast=True)]
# More than this are counted, and not told one by one.
_MOST_FAULTS = 1000


class FunctionCall(Checked):
    """A call of a tool in an earlier answer. Its arguments are JSON in a text, as OpenAI has it."""

    name: ToolName
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_an_object(cls, text: str) -> str:
        try:
            value = json.loads(text or "{}")
        except (ValueError, RecursionError) as err:
            raise ValueError(f"the arguments of a call must be JSON, and these are not: {err}") from err
        if not isinstance(value, dict):
            raise ValueError("the arguments of a call must be a JSON object")
        return text


class PastToolCall(Checked):
    """An entry of ``tool_calls`` in a message."""

    id: Identifier | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Checked):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | Items[ContentPart] | None = None
    reasoning_content: str | None = None
    name: Identifier | None = None
    tool_calls: Items[PastToolCall] | None = None
    tool_call_id: Identifier | None = None
    refusal: Absent
    annotations: Absent
    audio: Absent
    function_call: Absent

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of the role {self.role} needs content")
        return self

    def for_template(self) -> dict[str, Any]:
        """Returns the message as the chat template takes it: one text where it is text, and arguments as values."""
        message: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if isinstance(self.content, list):
            items = [part.model_dump() if isinstance(part, TextPart) else part.for_template() for part in self.content]
            is_text = all(isinstance(part, TextPart) for part in self.content)
            message["content"] = "".join(item["text"] for item in items) if is_text else items
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            calls = [call.function for call in self.tool_calls]
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments or "{}")}}
                for call in calls
            ]
        return message


class Function(Checked):
    """A tool's name and the JSON schema of its arguments."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Checked):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class JsonSchema(Checked):
    """The schema that an answer must fit."""

    name: Identifier
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Checked):
    """Whether an answer is free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Checked):
    """``include_usage`` adds a last event with the number of tokens."""

    include_usage: bool = False


class TemplateOptions(Checked):
    """What the chat template is told; without ``enable_thinking`` it decides itself."""

    enable_thinking: bool | None = None


class _Generation(Checked):
    """What every request for text has."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    user: str | None = None

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: StopText | Items[StopText] | None = None
    stop_token_ids: Items[TokenId] | None = None
    ignore_eos: bool | None = None
    thinking_budget: int | None = Field(default=None, ge=0, lt=2**31)
    budget_close: BudgetClose | None = None
    detect_loops: bool | None = None

    @field_validator("logit_bias")
    @classmethod
    def _names_tokens(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        wrong = [token for token in bias or () if not (token.isascii() and token.isdecimal() and len(token) < 10)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not the id of a token")
        return bias

    @field_validator("stop")
    @classmethod
    def _is_short(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > 16:
            raise ValueError(f"{len(stop)} texts; give at most 16")
        return stop

    def sampling(self, defaults: CardSampling, *, logprobs: int | None) -> SamplingParams:
        """Returns the settings of the request; what it leaves open is as ``defaults`` say.

        A request with a temperature of 0 asks for the most likely text, and none of the defaults applies.

        Raises:
          ValueError: a value is out of its range.
        """
        settings = {} if self.temperature == 0 else defaults._asdict()
        same = (
            "temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
            "thinking_budget", "budget_close", "detect_loops",
        )  # fmt: skip
        settings |= {name: value for name in same if (value := getattr(self, name)) is not None}
        return SamplingParams(
            **settings,
            logit_bias={int(token): value for token, value in (self.logit_bias or {}).items()},
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_end=bool(self.ignore_eos),
            logprobs=logprobs,
        )


class ChatRequest(_Generation):
    """The body of ``/v1/chat/completions``."""

    messages: Items[Message] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    tools: Items[Tool] | None = Field(default=None, max_length=512)
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    chat_template_kwargs: TemplateOptions = TemplateOptions()

    @field_validator("messages")
    @classmethod
    def _asks(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role == "assistant":
            raise ValueError("the conversation ends with the assistant's turn; end it with the one to be answered")
        return messages

    def media_fields(self) -> list[str]:
        """Returns the names of the fields that hold images and videos, in reading order."""
        return [
            f"messages.{i}.content.{j}.{part.type}"
            for i, message in enumerate(self.messages)
            for j, part in enumerate(message.content if isinstance(message.content, list) else ())
            if isinstance(part, MEDIA_PARTS)
        ]

    def used_tools(self) -> list[dict[str, Any]]:
        """Returns the tools that the model is told of, as the chat template takes them."""
        tools = [] if self.tool_choice == "none" else self.tools or []
        return [tool.model_dump(exclude_unset=True) for tool in tools]


class CompletionRequest(_Generation):
    """The body of ``/v1/completions``: one prompt or several, as text or as tokens."""

    prompt: str | Items[str] | Items[TokenId] | Items[Items[TokenId]]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @field_validator("prompt")
    @classmethod
    def _is_not_empty(cls, prompt: str | list) -> str | list:
        if not prompt:
            raise ValueError("an empty prompt; give a text or tokens")
        if isinstance(prompt, list) and not isinstance(prompt[0], int) and len(prompt) > MAX_PROMPTS:
            raise ValueError(f"{len(prompt)} prompts; give at most {MAX_PROMPTS}")
        return prompt

    def prompts(self) -> list[str | list[int]]:
        """Returns the prompts one by one."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # pyrefly: ignore
        return list(self.prompt)  # pyrefly: ignore


def read_request(kind: type[T], body: bytes) -> T:
    """Reads the body of a request.

    Raises:
      RequestError: it is no JSON object, or a field is unknown, missing or wrong; the message names the field.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as err:
        if err.error_count() > _MOST_FAULTS:
            raise RequestError(
                f"{err.error_count():,} fields of the body are unknown or wrong; send fields of the protocol alone."
            ) from err
        errors = err.errors(include_url=False, include_context=False)
    # Of the types that a field may have, the one that fits best is refused for the deepest and the last reason.
    of_first_field = [one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]]
    details: Mapping[str, Any] = max(of_first_field, key=lambda one: (len(one["loc"]), _places(one["loc"])))
    path = _path_of(details["loc"])
    if details["type"] == "extra_forbidden":
        nearest = did_you_mean(path, kind.model_fields) if len(details["loc"]) == 1 else ""
        raise RequestError(f"unknown field {path!r}; leave it out.{nearest}", param=path)
    if details["type"] == "json_invalid":
        raise RequestError(f"the body is not JSON: {details['msg'].removeprefix('Invalid JSON: ')}.")
    if details["type"] == "missing":
        raise RequestError(f"the field {path!r} is missing.", param=path)
    given = json.dumps(details["input"], default=str)
    given = given if len(given) <= 60 else f"{given[:60]}..."
    is_part = details["type"] in ("union_tag_invalid", "union_tag_not_found")
    reason = f"its type must be {PART_TYPES}" if is_part else details["msg"].removeprefix("Value error, ")
    raise RequestError(f"{path or 'the body'}: {reason[:1].lower()}{reason[1:]} (given: {given}).", param=path or None)


def _places(location: Sequence[str | int]) -> list[int]:
    return [name for name in location if isinstance(name, int)]


def _path_of(location: Sequence[str | int]) -> str:
    """Joins the names of fields. Between them stand those of the types that a field may have, and of parts."""
    names: list[str] = []
    for place, name in enumerate(location):
        is_kind_of_part = place > 1 and "tagged-union" in str(location[place - 2])
        if name != "str" and "[" not in str(name) and not is_kind_of_part:
            names.append(str(name))
    return ".".join(names)
