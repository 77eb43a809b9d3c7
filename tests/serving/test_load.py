"""Crowds, malformed bodies, and SIGTERM, with a real engine and a random model."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import httpx
import pytest

from qwen35_jax.inference.requests import seed_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.serving.app import make_app
from qwen35_jax.serving.errors import RequestError
from qwen35_jax.serving.types import ChatRequest, CompletionRequest, read_request
from tests.conftest import REPO
from tests.serving.conftest import chat, client_of, events_of, running

CHAT = "/v1/chat/completions"
CROWD = 200


def resources(engine):
    return engine.num_free_slots, engine.num_free_pages, engine.num_waiting, engine.has_work


def crowd_body(number):
    settings = {"temperature": 1.0, "top_k": 20, "top_p": 1.0, "presence_penalty": 0.0, "seed": number}
    return chat("hello " * (number % 7 + 1), stream=number % 2 == 0, max_tokens=8 + number % 24, **settings)


async def ask(client, number, patience):
    """The text of an answer, or None if the client has lost its patience before it was complete."""
    body = crowd_body(number)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience), client.stream("POST", CHAT, json=body) as reply:
            text = (await reply.aread()).decode()
            assert reply.status_code == 200, text
            if not body["stream"]:
                return json.loads(text)["choices"][0]["message"]["content"]
            choices = [event["choices"][0] for event in events_of(text)]
            assert choices[-1]["finish_reason"]
            return "".join(choice["delta"].get("content", "") for choice in choices)
    return None


@pytest.mark.slow
def test_a_crowd_of_which_a_third_leaves_loses_no_answer_and_no_slot(engine, tokenizer):
    """Every answer is what the engine writes when nobody disturbs it."""
    bodies = [crowd_body(number) for number in range(CROWD)]
    reference = engine.generate(
        [tokenizer.encode_chat(body["messages"]) for body in bodies],
        sampling=SamplingParams(temperature=1.0, top_k=20),
        max_new_tokens=[body["max_tokens"] for body in bodies],
        seed=[seed_of(number, 0) for number in range(CROWD)],
    )
    before, rng = resources(engine), random.Random(0)
    leaving = set(rng.sample(range(CROWD), CROWD // 3))
    app = make_app(engine, "tiny", max_waiting=CROWD)

    async def run(address):
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
            start = time.perf_counter()
            patience = [rng.uniform(0, 3) if number in leaving else None for number in range(CROWD)]
            answers = await asyncio.gather(*(ask(client, number, patience[number]) for number in range(CROWD)))
            print(f"{CROWD} requests in {time.perf_counter() - start:.1f} s, {answers.count(None)} gone")
            metrics = (await client.get("/metrics")).text
            assert "qwen35_open_completions 0\n" in metrics and "qwen35_waiting 0\n" in metrics
            return answers

    with running(app) as address:
        answers = asyncio.run(run(address))
    gone = answers.count(None)
    assert 10 < gone <= len(leaving)
    assert all(answer == one.answer for answer, one in zip(answers, reference, strict=True) if answer is not None)
    assert all(number in leaving for number, answer in enumerate(answers) if answer is None)
    assert resources(engine) == before and before[0] == engine.slots and before[1] == engine.num_pages
    assert 0 < app.state.counts.disconnects <= gone


VALUES = [
    None, True, -1, 0, 1e308, -1e400, 10**30, 0.5, "", "x", "\x00", "\ud800", [], [[]], {}, {"a": {}}, [None],
    "a" * 500, [1, "a"], {"type": "json_schema"}, {"role": "user"}, "-0", "1e5", float("nan"), float("inf"),
]  # fmt: skip


def mutate_value(value, rng):
    """Replaces, removes or adds something at a random place of a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.randrange(4)
        if kind == 0:
            return {name: one for name, one in value.items() if name != key}
        if kind == 1:
            return value | {rng.choice(["", key + "s", key.upper(), "x" * 300]): rng.choice(VALUES)}
        return value | {key: mutate_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], mutate_value(value[place], rng), *value[place + 1 :]]
    return rng.choice(VALUES)


def mutate_bytes(body, rng):
    """Damages bytes, cuts the end off, or nests without end."""
    kind = rng.randrange(4)
    if kind == 0:
        return body[: rng.randrange(len(body))]
    if kind == 1:
        return b'{"messages":' * rng.choice([5, 300, 50_000])
    damaged = bytearray(body)
    for _ in range(rng.choice([1, 1, 3, 20])):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged)


def bodies_to_damage():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    function = {"name": "f", "parameters": schema}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    talk = [
        {"role": "system", "content": [{"type": "text", "text": "a"}]},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "c", "tool_call_id": "1"},
    ]
    settings = {
        "temperature": 1, "top_p": 0.9, "top_k": 5, "n": 1, "stop": ["a"], "logit_bias": {"3": 1}, "seed": 1,
        "max_tokens": 1, "logprobs": True, "top_logprobs": 2, "stream": False, "thinking_budget": 3,
    }  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    yield CHAT, chat(max_tokens=1)
    yield CHAT, chat(**settings, tools=[{"type": "function", "function": function}]) | {"messages": talk}
    yield CHAT, chat(max_tokens=1, response_format=wanted, chat_template_kwargs={"enable_thinking": True})
    yield "/v1/completions", {"model": "tiny", "prompt": [[1, 2], [3]], "max_tokens": 1, "logprobs": 1, "n": 2}


def is_short(path, body):
    """Whether a body is refused, or asks for so few tokens that its answer takes no time."""
    try:
        asked = read_request(ChatRequest if path == CHAT else CompletionRequest, body)
    except RequestError:
        return True
    return (asked.max_tokens is not None and asked.max_tokens <= 4) or asked.model != "tiny"


@pytest.mark.slow
def test_malformed_bodies_get_nothing_but_4xx(engine):
    rng, counts = random.Random(0), {}
    before = resources(engine)
    originals = list(bodies_to_damage())

    async def run():
        async with client_of(make_app(engine, "tiny", max_body=500_000)) as client:
            for path, body in originals:
                assert (await client.post(path, json=body)).status_code == 200
            while sum(counts.get(status, 0) for status in (400, 404, 413, 415, 422)) < 2000:
                path, body = rng.choice(originals)
                for _ in range(rng.choice([1, 1, 2, 4])):
                    body = mutate_value(body, rng)
                content = json.dumps(body).encode()
                if rng.random() < 0.3:
                    content = mutate_bytes(content, rng)
                if not is_short(path, content):
                    continue
                reply = await client.post(path, content=content, headers={"Content-Type": "application/json"})
                counts[reply.status_code] = counts.get(reply.status_code, 0) + 1
                if reply.status_code != 200:
                    assert 400 <= reply.status_code < 500, (reply.status_code, content)
                    message = reply.json()["error"]["message"]
                    assert 0 < len(message) < 2000 and "\n" not in message, (message, content)

    asyncio.run(run())
    print(counts)
    assert resources(engine) == before


@contextlib.contextmanager
def process(checkpoint, log, *options):
    """Runs ``qwen35 serve``; gives the process and its address. What it compiles stands in ``log``."""
    settings = ["--model", checkpoint, "--name", "tiny", "--port", "0", *options]
    command = [sys.executable, "-m", "qwen35_jax.cli", "serve", *settings]
    environment = os.environ | {"JAX_LOG_COMPILES": "1"}
    with log.open("w") as errors:
        server = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        line = server.stdout.readline()
        assert line.startswith("serving tiny at http://127.0.0.1:"), log.read_text()
        yield server, line.split()[-1].removesuffix("/v1")
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("grace", [60.0, 0.2])
def test_sigterm_in_the_middle_of_streams_ends_each_cleanly(tiny_checkpoint, tmp_path, grace):
    """With time enough every stream comes to its own end; without, each ends where it is, with a reason.

    No request compiles anything: the server does it before it is ready.
    """
    options = ["--dtype", "float32", "--slots", "16", "--cache-tokens", "8192", "--grace-seconds", str(grace)]

    async def in_the_middle(client):
        numbers = dict(line.rsplit(" ", 1) for line in (await client.get("/metrics")).text.splitlines())
        return numbers["qwen35_open_completions"] == "50" and int(numbers["qwen35_generated_tokens_total"]) > 200

    async def follow(client, number):
        body = chat(stream=True, max_tokens=100, seed=number, logit_bias={"267": -100, "269": -100})
        async with client.stream("POST", CHAT, json=body) as reply:
            assert reply.status_code == 200
            return events_of((await reply.aread()).decode())

    async def run(server, address):
        async with httpx.AsyncClient(
            base_url=address, timeout=120, limits=httpx.Limits(max_connections=None)
        ) as client:
            await client.get("/health")
            streams = [asyncio.ensure_future(follow(client, number)) for number in range(50)]
            async with asyncio.timeout(60):
                while not await in_the_middle(client):
                    await asyncio.sleep(0.02)
            server.send_signal(signal.SIGTERM)
            start = time.perf_counter()
            async with asyncio.timeout(10):
                while (await client.get("/health")).status_code == 200:
                    await asyncio.sleep(0.01)
            refused = await client.post(CHAT, json=chat())
            assert refused.status_code == 503
            answers = await asyncio.gather(*streams)
            return answers, time.perf_counter() - start

    log = tmp_path / "log"
    with process(tiny_checkpoint, log, *options) as (server, address):
        num_compiled = log.read_text().count("Compiling jit(")
        answers, seconds = asyncio.run(run(server, address))
        assert server.wait(30) == 0
    assert num_compiled > 3 and log.read_text().count("Compiling jit(") == num_compiled
    assert "Traceback" not in log.read_text() and "ERROR" not in log.read_text()
    ends = [events[-1]["choices"][0] for events in answers]
    assert len(ends) == 50 and all(end["finish_reason"] == "length" for end in ends)
    details = [end["finish_detail"] for end in ends]
    print(f"grace {grace}: all 50 streams ended after {seconds:.1f} s, {details.count('aborted')} of them cut")
    if grace > 1:
        assert set(details) == {"length"}
    else:
        assert details.count("aborted") > 25 and seconds < 15
