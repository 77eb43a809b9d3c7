"""Applications for the tests of the server, and clients for them."""

import contextlib
import json
import threading
import time

import httpx
import pytest
import uvicorn

from qwen35_jax.inference.engine import Engine
from qwen35_jax.serving.app import make_app
from qwen35_jax.serving.serve import bind
from tests.inference.conftest import make_model, model, tokenizer  # noqa: F401
from tests.serving.scripted import ScriptedEngine


@pytest.fixture
def scripted(tokenizer):  # noqa: F811
    """Makes a scripted engine and its application, named ``tiny``."""

    def make(text, *, app_settings=None, **settings):
        engine = ScriptedEngine(tokenizer, text, **settings)
        return engine, make_app(engine, "tiny", **(app_settings or {}))

    return make


@pytest.fixture(scope="session")
def engine(model, tokenizer):  # noqa: F811
    """The one real engine of these tests. Each test must leave it without requests."""
    return Engine(model, tokenizer, slots=4, cache_tokens=2048, page_size=16, prefill_chunk=32, steps_per_call=4)


@contextlib.asynccontextmanager
async def client_of(app, **settings):
    """A client in the same process, while the application lives."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30, **settings) as client,
    ):
        yield client


@contextlib.contextmanager
def running(app):
    """Serves an application on a free port from another thread; gives the address."""
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def chat(text="hi", **settings):
    """The body of a request for a chat."""
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **settings}


def events_of(text):
    """The events of a stream, whose end is checked."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
