"""OpenAI's own client against a server with a real engine and a random model."""

import json

import openai
import pydantic
import pytest

from qwen35_jax.inference.requests import seed_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.serving.app import make_app
from tests.serving.conftest import running

MESSAGES = [{"role": "user", "content": "hello"}]
SETTINGS = {"temperature": 0.8, "presence_penalty": 0.5, "top_p": 0.9, "max_tokens": 24, "seed": 5}
SAMPLING = SamplingParams(temperature=0.8, top_k=20, presence_penalty=0.5, top_p=0.9, logprobs=2)
# The tokens after those of text: marks, and those that only the model has.
NO_SPECIALS = {str(token): -100 for token in range(267, 512)}


def client_at(address, key="none"):
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def reference(engine, tokenizer):
    """What the engine itself writes for ``MESSAGES``, three times."""
    prompt = tokenizer.encode_chat(MESSAGES)
    return engine.generate([prompt] * 3, sampling=SAMPLING, max_new_tokens=24, seed=5)


@pytest.fixture(scope="module")
def client(engine, reference):
    with running(make_app(engine, "tiny")) as address:
        yield client_at(address)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_chat_is_what_the_engine_writes(client, reference, tokenizer):
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, n=3, **SETTINGS)
    assert [choice.message.content for choice in answer.choices] == [one.answer for one in reference]
    assert [choice.finish_reason for choice in answer.choices] == [one.finish_reason for one in reference]
    assert answer.usage.completion_tokens == sum(len(one.token_ids) for one in reference)
    assert answer.usage.prompt_tokens == len(tokenizer.encode_chat(MESSAGES))
    assert len({one.text for one in reference}) == 3


def test_a_stream_adds_up_to_the_same(client, reference):
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=3, stream=True, stream_options={"include_usage": True}, **SETTINGS
    )
    texts, reasons, usage = [""] * 3, [None] * 3, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [one.answer for one in reference]
    assert reasons == [one.finish_reason for one in reference]
    assert usage.completion_tokens == sum(len(one.token_ids) for one in reference)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_the_engines(client, reference, tokenizer, stream):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2, stream=stream, **SETTINGS
    )
    if stream:
        entries = [e for chunk in answer if chunk.choices[0].logprobs for e in chunk.choices[0].logprobs.content]
    else:
        entries = answer.choices[0].logprobs.content
    one = reference[0]
    wanted = [(token, lp) for token, lp in zip(one.token_ids, one.logprobs, strict=True) if tokenizer.decode([token])]
    assert [entry.logprob for entry in entries] == [lp.model for _, lp in wanted]
    assert [entry.model_extra["sampling_logprob"] for entry in entries] == [lp.sampling for _, lp in wanted]
    assert b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace") == one.answer
    assert [[top.logprob for top in entry.top_logprobs] for entry in entries] == [
        [value for _, value in lp.top] for _, lp in wanted
    ]
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


def test_completions_continue_texts(client, engine, tokenizer):
    settings = {"temperature": 0, "max_tokens": 12, "logprobs": 1, "logit_bias": NO_SPECIALS}
    answer = client.completions.create(model="tiny", prompt=["ab", "hello"], **settings)
    ids = tokenizer.encode("hello")
    again = client.completions.create(model="tiny", prompt=ids, **settings)
    assert answer.choices[1].text == again.choices[0].text
    stream = client.completions.create(model="tiny", prompt="hello", stream=True, **settings)
    assert "".join(chunk.choices[0].text for chunk in stream) == again.choices[0].text
    logprobs = again.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) >= 10
    assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert value <= max(top.values()) and (token not in top or top[token] == value)


def test_a_stop_string_ends_the_answer_and_is_left_out(client, reference):
    text = reference[0].answer
    stop = text[8:10]
    for stream in (False, True):
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, stop=stop, stream=stream, **SETTINGS)
        if stream:
            chunks = list(answer)
            told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            told, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (told, reason) == (text[: text.index(stop)], "stop")


def test_a_stop_string_ends_a_streamed_completion(client):
    settings = {"temperature": 0, "max_tokens": 30, "logit_bias": NO_SPECIALS}
    text = client.completions.create(model="tiny", prompt="hello", **settings).choices[0].text
    stop = text[7:10]
    stream = client.completions.create(model="tiny", prompt="hello", stop=stop, stream=True, **settings)
    assert "".join(chunk.choices[0].text for chunk in stream) == text[: text.index(stop)]


@pytest.mark.parametrize("stop", ["\n\n", "\n\n\n\n\n\nx"])
def test_a_stop_string_may_begin_with_the_white_space_that_a_completion_begins_with(client, stop):
    bias = NO_SPECIALS | {str(ord("\n") + 188): 100, str(ord("x") - 33): 90}
    settings = {"temperature": 0, "max_tokens": 12, "frequency_penalty": 2, "logit_bias": bias}
    answer = client.completions.create(model="tiny", prompt="hello", **settings).choices[0]
    assert answer.text == "\n\n\n\n\n\nxx\nx\n\n"
    for stream in (False, True):
        answer = client.completions.create(model="tiny", prompt="hello", stop=stop, stream=stream, **settings)
        chunks = list(answer) if stream else [answer]
        assert "".join(chunk.choices[0].text for chunk in chunks) == ""
        assert chunks[-1].choices[0].finish_reason == "stop"


class Pet(pydantic.BaseModel):
    kind: str = pydantic.Field(json_schema_extra={"enum": ["cat", "dog"]})
    legs: int = pydantic.Field(ge=0, le=8)


@pytest.mark.parametrize(("thinking", "close"), [(False, "hard"), (True, "hard"), (True, "sentence")])
def test_an_answer_fits_a_json_schema(client, thinking, close):
    answer = client.chat.completions.parse(
        model="tiny",
        messages=MESSAGES,
        response_format=Pet,
        max_tokens=400,
        n=2,
        seed=1,
        extra_body={
            "chat_template_kwargs": {"enable_thinking": thinking}, "thinking_budget": 6, "budget_close": close,
        },
    )  # fmt: skip
    for choice in answer.choices:
        assert isinstance(choice.message.parsed, Pet) and choice.finish_reason == "stop"
        assert bool(choice.message.model_extra.get("reasoning_content")) == thinking


def test_an_answer_is_any_json_object(client):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=900, seed=2,
        temperature=0.5, logit_bias={str(ord("}") - ord("!")): 8},
    )  # fmt: skip
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_errors_are_those_that_the_client_knows(client):
    def create(**settings):
        return client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES} | settings)

    with pytest.raises(openai.BadRequestError, match="unknown field 'temprature'"):
        create(extra_body={"temprature": 1})
    with pytest.raises(openai.NotFoundError, match="no model 'other' here; this server has 'tiny'"):
        create(model="other")
    with pytest.raises(openai.BadRequestError, match=r"the prompt has \d{4} tokens, but this server holds 2048 a req"):
        create(messages=[{"role": "user", "content": "z" * 3000}])
    with pytest.raises(openai.BadRequestError, match=r"the prompt has \d+ tokens and 5000 may be written") as raised:
        create(max_tokens=5000)
    assert raised.value.param == "max_tokens" and raised.value.body["type"] == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="the JSON schema cannot be used"):
        schema = {"type": "object", "properties": {"a": {"type": "wrong"}}}
        create(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
    with pytest.raises(openai.BadRequestError, match="logit_bias names token 5000, but the model knows") as raised:
        create(logit_bias={"5000": 1})
    assert raised.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError, match="The chat template refuses"):
        create(messages=[{"role": "system", "content": "a"}])


def test_seeds_make_answers_repeatable_and_their_absence_does_not(client):
    def text(**settings):
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20, **settings)
        return answer.choices[0].message.content

    assert text(seed=3) == text(seed=3) != text(seed=4)
    assert text() != text()
    assert seed_of(3, 0) != seed_of(4, 0)
