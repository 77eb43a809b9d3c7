"""Overload, clients that go away, and the end of the server."""

import asyncio
import contextlib
import json
import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwen35_jax.serving.grammar import Vocabulary
from tests.serving.conftest import chat, client_of, events_of

END = "<|im_end|>"
JSON = {"Content-Type": "application/json"}


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def call_of(app, body, messages, *, more_body=False):
    """Runs one request by hand.

    Returns:
      Its task, and what the client does: ``gone.set()`` takes it away.
    """
    gone = asyncio.Event()
    first = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": more_body}]

    async def receive():
        if first:
            return first.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        messages.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions",
        "root_path": "", "query_string": b"", "scheme": "http", "server": ("test", 80), "client": ("test", 1),
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "asgi": {"version": "3.0"},
    }  # fmt: skip
    return asyncio.ensure_future(app(scope, receive, send)), gone


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("waiting", [False, True])
def test_a_client_that_goes_away_frees_its_slot_within_one_call(scripted, stream, waiting):
    engine, app = scripted("on and on ", slots=1, app_settings={"max_waiting": 4})

    async def run():
        async with app.router.lifespan_context(app):
            engine.hold = lambda: time.sleep(0.05)
            first, leave_first = call_of(app, chat(), [])
            await until(lambda: engine.steps > 1)
            messages = []
            task, leave = call_of(app, chat(stream=stream), messages) if waiting else (first, leave_first)
            await until(lambda: len(engine.submitted) == 1 + waiting)
            steps = engine.steps
            leave.set()
            await until(lambda: engine.aborted == [int(waiting)])
            assert engine.steps <= steps + 1
            await task
            leave_first.set()
            await first
            await until(lambda: not engine.has_work)
            assert app.state.service.worker.num_open == 0 and app.state.counts.disconnects == 1 + waiting

    asyncio.run(run())
    assert engine.num_free_slots == 1


def test_a_client_that_goes_away_while_its_request_is_handed_over_leaves_nothing(scripted):
    engine, app = scripted("on and on ", slots=1)
    holding, go_on = threading.Event(), threading.Event()

    def hold():
        holding.set()
        go_on.wait(10)

    async def run():
        async with app.router.lifespan_context(app):
            first, leave_first = call_of(app, chat(), [])
            await until(lambda: engine.steps)
            engine.hold = hold
            await until(holding.is_set)
            messages = []
            second, leave = call_of(app, chat(), messages)
            await until(lambda: app.state.service.worker.num_open == 2)
            leave.set()
            await second
            assert app.state.service.worker.num_open == 1 and not messages
            go_on.set()
            await until(lambda: engine.aborted == [1])
            leave_first.set()
            await first

    asyncio.run(run())


def test_a_client_that_goes_away_before_its_body_has_come_leaves_nothing(scripted):
    engine, app = scripted("on and on ")

    async def run():
        async with app.router.lifespan_context(app):
            messages = []
            task, leave = call_of(app, chat(), messages, more_body=True)
            await asyncio.sleep(0.01)
            leave.set()
            await task
            assert not messages

    asyncio.run(run())
    assert not engine.submitted


def test_a_grammar_that_takes_long_to_build_holds_up_nobody(scripted, monkeypatch):
    _, app = scripted(f"x{END}")
    compile_schema = Vocabulary.compile

    asked, released = threading.Event(), threading.Event()

    def slowly(self, schema):
        asked.set()
        released.wait(30)
        return compile_schema(self, schema)

    monkeypatch.setattr(Vocabulary, "compile", slowly)

    async def run():
        async with client_of(app) as client:
            body = chat(response_format={"type": "json_object"})
            slow = asyncio.ensure_future(client.post("/v1/chat/completions", json=body))
            assert await asyncio.to_thread(asked.wait, 30)
            assert (await client.get("/health")).status_code == 200
            assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
            assert not slow.done()
            released.set()
            assert (await slow).status_code == 200

    asyncio.run(run())


def test_overload_is_refused_and_ends(scripted):
    engine, app = scripted("on and on ", slots=2, app_settings={"max_waiting": 1})
    engine.hold = lambda: time.sleep(0.01)

    async def run():
        async with client_of(app) as client:
            held = [call_of(app, chat(max_tokens=150), []) for _ in range(3)]
            await until(lambda: len(engine.submitted) == 3)
            reply = await client.post("/v1/chat/completions", json=chat())
            assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1
            error = reply.json()["error"]
            assert error["type"] == "rate_limit_error"
            assert error["message"].startswith("3 completions are being written or wait, and this server takes 3;")
            held[0][1].set()
            await held[0][0]
            assert (await client.post("/v1/chat/completions", json=chat(n=2))).status_code == 429
            reply = await client.post("/v1/chat/completions", json=chat(max_tokens=5))
            assert reply.status_code == 200
            reply = await client.post("/v1/chat/completions", json=chat(n=4))
            assert reply.status_code == 400 and "takes at most 3" in reply.json()["error"]["message"]
            for task, leave in held[1:]:
                leave.set()
                await task

    asyncio.run(run())


def test_of_several_prompts_all_are_taken_or_none(scripted, tokenizer):
    engine, app = scripted("on and on ")

    async def run():
        async with client_of(app) as client:
            body = {"model": "tiny", "prompt": [[1], [2], [5000]]}
            reply = await client.post("/v1/completions", json=body)
            assert reply.status_code == 400 and "holds token 5000" in reply.json()["error"]["message"]
            assert engine.aborted == [0, 1]
            assert app.state.service.worker.num_open == 0

    asyncio.run(run())


def test_an_engine_that_fails_ends_every_answer_and_the_server(scripted):
    engine, app = scripted("on and on ")

    def fail():
        raise MemoryError("no memory")

    async def run():
        with contextlib.suppress(MemoryError):
            async with client_of(app) as client:
                whole = asyncio.ensure_future(client.post("/v1/chat/completions", json=chat()))
                stream = asyncio.ensure_future(client.post("/v1/chat/completions", json=chat(stream=True)))
                await until(lambda: len(engine.submitted) == 2)
                engine.hold = fail
                assert (await whole).status_code == 500
                assert "the engine has stopped" in (await whole).json()["error"]["message"]
                last = (await stream).text.split("\n\n")[-2]
                assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
                assert (await client.get("/health")).status_code == 503
                assert (await client.post("/v1/chat/completions", json=chat())).status_code == 500
                assert (await client.get("/metrics")).status_code == 500
                with pytest.raises(MemoryError):
                    app.state.service.worker.ended.result()

    asyncio.run(run())


def test_draining_lets_open_answers_finish_and_ends_the_others(scripted):
    engine, app = scripted("on and on ", speed=1, slots=8)

    async def run():
        async with client_of(app) as client:
            worker = app.state.service.worker
            engine.hold = lambda: time.sleep(0.005)
            short, long, stream = (
                asyncio.ensure_future(client.post("/v1/chat/completions", json=chat(**settings)))
                for settings in ({"max_tokens": 40}, {}, {"stream": True})
            )
            await until(lambda: len(engine.submitted) == 3)
            ending = asyncio.ensure_future(worker.drain(1.0))
            await until(lambda: worker.draining)
            reply = await client.post("/v1/chat/completions", json=chat())
            assert reply.status_code == 503 and "retry-after" in reply.headers
            assert (await client.get("/health")).json() == {"status": "ending"}
            await ending
            assert (await short).json()["usage"]["completion_tokens"] == 40
            [choice] = (await long).json()["choices"]
            assert choice["finish_reason"] == "length" and choice["finish_detail"] == "aborted"
            assert choice["message"]["content"].startswith("on and on")
            assert events_of((await stream).text)[-1]["choices"][0]["finish_reason"] == "length"
            assert not engine.has_work and worker.num_open == 0

    asyncio.run(run())


def test_metrics_are_read_by_prometheus(scripted):
    engine, app = scripted(f"x{END}")
    engine.metrics.requests, engine.metrics.finished["stop"] = 3, 2
    engine.metrics.by_position[0] = type(engine.metrics.drafts)(10, 7)

    async def run():
        async with client_of(app) as client:
            for body in (chat(), chat(wrong=1)):
                await client.post("/v1/chat/completions", json=body)
            await client.get("/wp-login.php")
            return await client.get("/metrics")

    reply = asyncio.run(run())
    assert reply.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }
    path = ("path", "/v1/chat/completions")
    assert samples["qwen35_http_responses_total", path, ("status", "200")] == 1
    assert samples["qwen35_http_responses_total", path, ("status", "400")] == 1
    assert samples["qwen35_http_responses_total", ("path", "other"), ("status", "404")] == 1
    assert samples["qwen35_requests_total",] == 3 and samples["qwen35_free_slots",] == 4
    assert samples["qwen35_finished_total", ("reason", "stop")] == 2
    assert samples["qwen35_drafts_accepted_total", ("by", "position"), ("value", "0")] == 7
