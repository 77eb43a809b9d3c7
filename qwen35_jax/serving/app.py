"""The application: routes, errors, and the life of the engine's thread."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qwen35_jax.inference.engine import Engine
from qwen35_jax.presets import CARD_SAMPLING, CardSampling, card_sampling
from qwen35_jax.processing.processor import Processor
from qwen35_jax.serving.chat import answer_chat
from qwen35_jax.serving.completions import answer_completions
from qwen35_jax.serving.errors import RequestError, error_body
from qwen35_jax.serving.gate import Gate
from qwen35_jax.serving.grammar import Vocabulary
from qwen35_jax.serving.metrics import CONTENT_TYPE, HttpCounts, prometheus_text, read_engine
from qwen35_jax.serving.service import Service
from qwen35_jax.serving.worker import EngineWorker

MAX_BODY = 16 * 1024**2
MAX_WAITING = 256


def make_app(
    engine: Engine,
    name: str,
    *,
    api_key: str | None = None,
    max_body: int = MAX_BODY,
    max_waiting: int = MAX_WAITING,
    defaults: Mapping[str, CardSampling] | None = None,
    processor: Processor | None = None,
) -> Starlette:
    """Makes the ASGI application that serves an engine.

    The engine belongs to the application from its start to its end (ASGI's lifespan); nobody else may call it then.

    Args:
      name: what clients call the model.
      api_key: what clients must send; None lets everybody in.
      max_body: most bytes of a request's body.
      max_waiting: how many completions may wait for a slot; beyond them a request gets a 429.
      defaults: how a chat is sampled where the request leaves it open, by ``"thinking"`` and ``"non_thinking"``;
        by default as the model card says.
      processor: opens the images and videos of messages, as far as its policy allows; None refuses them.
    """
    worker = EngineWorker(engine, max_waiting=max_waiting)
    config = engine.model.config
    vocabulary = Vocabulary(engine.tokenizer, config.text.vocab_size)
    defaults = defaults or {mode: card_sampling(config, mode) for mode in CARD_SAMPLING}
    counts = HttpCounts()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await worker.stop()

    routes = [
        Route("/v1/models", _models),
        Route("/v1/models/{name:path}", _model),
        Route("/v1/chat/completions", answer_chat, methods=["POST"]),
        Route("/v1/completions", answer_completions, methods=["POST"]),
        Route("/health", _health),
        Route("/metrics", _metrics),
    ]
    paths = tuple(route.path for route in routes)
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Gate, paths=paths, counts=counts, api_key=api_key, max_body=max_body)],
        exception_handlers={RequestError: _refused, HTTPException: _no_route, Exception: _defect},
        lifespan=lifespan,
    )
    app.state.service = Service(name, worker, vocabulary, defaults, engine.max_length, processor)
    app.state.counts = counts
    return app


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_description(request.app.state.service)]})


async def _model(request: Request) -> Response:
    service: Service = request.app.state.service
    service.check_model(request.path_params["name"])
    return JSONResponse(_description(service))


def _description(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "qwen35-jax",
        "max_model_len": service.max_length,
    }


async def _health(request: Request) -> Response:
    worker: EngineWorker = request.app.state.service.worker
    status = "stopped" if worker.ended.done() else "ending" if worker.draining else "ok"
    return JSONResponse({"status": status}, status_code=200 if status == "ok" else 503)


async def _metrics(request: Request) -> Response:
    worker: EngineWorker = request.app.state.service.worker
    numbers = await worker.call(lambda: read_engine(worker.engine))
    text = prometheus_text(numbers, request.app.state.counts, num_open=worker.num_open)
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


async def _refused(_: Request, err: Exception) -> Response:
    assert isinstance(err, RequestError)
    return JSONResponse(err.body, status_code=err.status, headers=err.headers)


async def _no_route(request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    message = f"{request.method} {request.url.path}: {err.detail.lower()}."
    return JSONResponse(error_body(message, err.status_code), status_code=err.status_code, headers=err.headers)


async def _defect(_: Request, err: Exception) -> Response:
    return JSONResponse(error_body(f"a defect of this server: {type(err).__name__}.", 500), status_code=500)
