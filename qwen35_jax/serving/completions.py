"""``/v1/completions``: the continuation of texts, without the chat template."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from qwen35_jax.config import ModelConfig
from qwen35_jax.presets import CardSampling
from qwen35_jax.serving.answers import TextAnswer, text_logprobs
from qwen35_jax.serving.errors import RequestError, refusal_of
from qwen35_jax.serving.service import Service, finish_reason, usage
from qwen35_jax.serving.streams import EventStream
from qwen35_jax.serving.types import CompletionRequest, read_request
from qwen35_jax.serving.worker import Job, Submission

# OpenAI's own defaults; the model cards speak of chats only.
_MAX_TOKENS = 16
_SAMPLING = CardSampling(temperature=1.0, top_k=0, top_p=1.0, presence_penalty=0.0)


async def answer_completions(request: Request) -> ASGIApp:
    """Answers a request, or refuses it with a ``RequestError``."""
    service: Service = request.app.state.service
    asked, submissions = await asyncio.to_thread(_prepare, service, await request.body())
    job = await service.worker.submit(submissions)
    answers = [TextAnswer(service.vocabulary.tokenizer) for _ in submissions]
    num_prompt_tokens = sum(len(one.prompt) for one in submissions[:: asked.n])
    if asked.stream:
        return EventStream(job, _events(service, asked, job, answers, num_prompt_tokens))
    with contextlib.closing(job):
        async for number, event in job:
            answers[number].take(event)
    return await asyncio.to_thread(_respond, service, answers, num_prompt_tokens)


def _respond(service: Service, answers: list[TextAnswer], num_prompt_tokens: int) -> JSONResponse:
    return JSONResponse(
        service.head("text_completion", "cmpl")
        | {"choices": [_choice(service, *pair) for pair in enumerate(answers)]}
        | {"usage": usage(num_prompt_tokens, answers)}
    )


def _prepare(service: Service, body: bytes) -> tuple[CompletionRequest, list[Submission]]:
    asked = read_request(CompletionRequest, body)
    service.check_model(asked.model)
    tokenizer = service.vocabulary.tokenizer
    limit = _MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
    try:
        prompts = [tokenizer.encode(one) if isinstance(one, str) else one for one in asked.prompts()]
        _check_are_text(prompts, service.worker.engine.model.config)
        sampling = asked.sampling(_SAMPLING, logprobs=asked.logprobs)
        submissions = service.submissions(prompts, sampling, num_choices=asked.n, max_new_tokens=limit, seed=asked.seed)
        # The engine's thread would refuse a prompt too, but not by its number.
        service.worker.engine.check(prompts, max_new_tokens=limit, sampling=sampling)
    except ValueError as err:
        raise refusal_of(err) from err
    return asked, submissions


def _check_are_text(prompts: Sequence[Sequence[int]], config: ModelConfig) -> None:
    for number, prompt in enumerate(prompts):
        if config.image_token_id in prompt or config.video_token_id in prompt:
            raise RequestError(
                f"prompt {number} has placeholders of images or videos, and prompts are text alone; send images and "
                "videos to /v1/chat/completions, as parts of a message.",
                param="prompt",
            )


def _choice(service: Service, number: int, answer: TextAnswer) -> dict[str, Any]:
    logprobs = text_logprobs(service.vocabulary, answer.scored, answer.offsets)
    return {"index": number, "text": answer.text, "logprobs": logprobs} | _end(answer)


def _end(answer: TextAnswer) -> dict[str, Any]:
    assert answer.completion is not None
    return {"finish_reason": finish_reason(answer.completion), "finish_detail": answer.completion.finish_reason}


async def _events(
    service: Service, asked: CompletionRequest, job: Job, answers: list[TextAnswer], num_prompt_tokens: int
) -> AsyncIterator[dict[str, Any]]:
    head = service.head("text_completion", "cmpl")
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage
    if with_usage:
        head["usage"] = None
    async for number, event in job:
        answer = answers[number]
        num_told = len(answer.scored)
        text = answer.take(event)
        logprobs = text_logprobs(service.vocabulary, answer.scored[num_told:], answer.offsets[num_told:])
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": None}
        if event.completion is not None:
            choice |= _end(answer)
        if text or logprobs or event.completion is not None:
            yield head | {"choices": [choice]}
    if with_usage:
        yield head | {"choices": [], "usage": usage(num_prompt_tokens, answers)}
