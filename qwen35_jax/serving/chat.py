"""``/v1/chat/completions``: the next turn of a conversation."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from qwen35_jax.processing.processor import check_placeholders
from qwen35_jax.processing.thinking import opens_thinking
from qwen35_jax.processing.tool_calls import ToolCall, ToolCallStream
from qwen35_jax.serving.answers import ChatAnswer, Part, chat_logprobs
from qwen35_jax.serving.errors import RequestError, refusal_of
from qwen35_jax.serving.media import read_media
from qwen35_jax.serving.service import Service, finish_reason, usage
from qwen35_jax.serving.streams import EventStream
from qwen35_jax.serving.types import ChatRequest, ResponseFormat, read_request
from qwen35_jax.serving.worker import Job, Submission


async def answer_chat(request: Request) -> ASGIApp:
    """Answers a request, or refuses it with a ``RequestError``."""
    service: Service = request.app.state.service
    # Reading, rendering and tokenizing a long conversation takes long enough to hold up everybody else.
    asked = await asyncio.to_thread(_read, service, await request.body())
    async with service.opening if asked.media_fields() else contextlib.nullcontext():
        submissions = await asyncio.to_thread(_prepare, service, asked)
    job = await service.worker.submit(submissions)
    answers = [ChatAnswer(_calls(service, asked)) for _ in submissions]
    if asked.stream:
        return EventStream(job, _events(service, asked, job, answers))
    with contextlib.closing(job):
        async for number, event in job:
            answers[number].take(event)
    # With log-probabilities it may have megabytes.
    return await asyncio.to_thread(_respond, service, submissions, answers)


def _respond(service: Service, submissions: list[Submission], answers: list[ChatAnswer]) -> JSONResponse:
    return JSONResponse(
        service.head("chat.completion", "chatcmpl")
        | {"choices": [_choice(service, *pair) for pair in enumerate(answers)]}
        | {"usage": usage(len(submissions[0].prompt), answers)}
    )


def _read(service: Service, body: bytes) -> ChatRequest:
    asked = read_request(ChatRequest, body)
    service.check_model(asked.model)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise RequestError("top_logprobs goes with logprobs=true.", param="top_logprobs")
    limits = (asked.max_tokens, asked.max_completion_tokens)
    if None not in limits and len(set(limits)) > 1:
        raise RequestError(
            f"max_tokens is {limits[0]} and max_completion_tokens {limits[1]}, and both mean the same; give one.",
            param="max_completion_tokens",
        )
    return asked


def _prepare(service: Service, asked: ChatRequest) -> list[Submission]:
    tokenizer = service.vocabulary.tokenizer
    try:
        _calls(service, asked)
        how = {"tools": asked.used_tools() or None, "enable_thinking": asked.chat_template_kwargs.enable_thinking}
        messages = [message.for_template() for message in asked.messages]
        if fields := asked.media_fields():
            prompt = read_media(service, messages, fields, **how)
        else:
            prompt = tokenizer.encode_chat(messages, **how)
            check_placeholders(prompt, messages, tokenizer)
        mode = "thinking" if opens_thinking(tokenizer, prompt) else "non_thinking"
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        sampling = asked.sampling(service.defaults[mode], logprobs=logprobs)
        limit_field = "max_completion_tokens" if asked.max_tokens is None else "max_tokens"
        return service.submissions(
            [prompt],
            sampling,
            num_choices=asked.n,
            max_new_tokens=getattr(asked, limit_field),
            limit_field=limit_field,
            seed=asked.seed,
            schema=_schema(asked.response_format),
        )
    except ValueError as err:
        raise refusal_of(err) from err


def _schema(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise RequestError(
            "response_format of the type json_schema needs json_schema: {name, schema}.", param="response_format"
        )
    return wanted.json_schema.json_schema


def _calls(service: Service, asked: ChatRequest) -> ToolCallStream | None:
    tools = asked.used_tools()
    return ToolCallStream(service.vocabulary.tokenizer, tools) if tools else None


def _choice(service: Service, number: int, answer: ChatAnswer) -> dict[str, Any]:
    calls = answer.tool_calls
    message: dict[str, Any] = {"role": "assistant", "content": answer.text("content") or (None if calls else "")}
    if reasoning := answer.text("reasoning_content"):
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    logprobs = chat_logprobs(service.vocabulary, answer.scored)
    return {"index": number, "message": message, "logprobs": logprobs} | _end(answer)


def _end(answer: ChatAnswer) -> dict[str, Any]:
    """Says how a choice ended: in OpenAI's words, and in the engine's."""
    assert answer.completion is not None
    reason = finish_reason(answer.completion)
    if reason == "stop" and answer.tool_calls:
        reason = "tool_calls"
    return {"finish_reason": reason, "finish_detail": answer.completion.finish_reason}


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


async def _events(
    service: Service, asked: ChatRequest, job: Job, answers: list[ChatAnswer]
) -> AsyncIterator[dict[str, Any]]:
    head = service.head("chat.completion.chunk", "chatcmpl")
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage
    if with_usage:
        head["usage"] = None

    def chunk(number: int, delta: dict[str, Any], **end: Any) -> dict[str, Any]:
        return head | {"choices": [{"index": number, "delta": delta, "logprobs": None, "finish_reason": None} | end]}

    for number in range(len(answers)):
        yield chunk(number, {"role": "assistant", "content": ""})
    async for number, event in job:
        answer = answers[number]
        num_told, num_calls = len(answer.scored), len(answer.tool_calls)
        deltas = []
        for part in answer.take(event):
            deltas.append(_delta(part, num_calls))
            num_calls += isinstance(part[1], ToolCall)
        logprobs = chat_logprobs(service.vocabulary, answer.scored[num_told:])
        for delta in deltas or ([{}] if logprobs else []):
            yield chunk(number, delta, logprobs=logprobs)
            logprobs = None
        if event.completion is not None:
            yield chunk(number, {}, **_end(answer))
    if with_usage:
        yield head | {"choices": [], "usage": usage(len(job.submissions[0].prompt), answers)}


def _delta(part: Part, num_calls: int) -> dict[str, Any]:
    field, value = part
    return {field: value} if isinstance(value, str) else {field: [{"index": num_calls} | _call(value)]}
