"""Runs the application on a port until it is told to end."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from qwen35_jax.serving.worker import EngineWorker

# After the last answer is written: how long a client may take to read it.
_CLOSING_SECONDS = 5


class _Server(uvicorn.Server):
    """Leaves the signals to ``serve``, which lets open requests finish first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """Takes a port before the model is loaded, which takes long. Port 0 takes any free one.

    From then on clients can connect; they wait for their answer until the application runs.

    Raises:
      ValueError: the port is taken, or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()  # until somebody listens, Linux lets a second process bind the same port
    except (OSError, OverflowError) as err:
        sock.close()
        reason = getattr(err, "strerror", None) or str(err).rstrip(".")
        raise ValueError(f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host.") from err
    return sock


def serve(
    app: Starlette, sock: socket.socket, *, grace_seconds: float, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Serves an application of ``make_app`` until SIGTERM or SIGINT, or until its engine fails.

    At the signal new requests get a 503. Open ones may finish for ``grace_seconds``; then they are ended where they
    are, with ``finish_reason`` ``"length"``. A second signal ends the process at once.

    Args:
      on_ready: called when clients can connect.

    Raises:
      Exception: the error that ended the engine.
    """
    asyncio.run(_serve(app, sock, grace_seconds, on_ready))


async def _serve(app: Starlette, sock: socket.socket, grace_seconds: float, on_ready: Callable[[], None]) -> None:
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )
    server = _Server(config)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        stopped.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, stop)
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if serving.done():
        await serving
    on_ready()
    worker: EngineWorker = app.state.service.worker
    told = asyncio.ensure_future(stopped.wait())
    await asyncio.wait({told, worker.ended, serving}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    await worker.drain(grace_seconds)
    server.should_exit = True
    await serving
    worker.ended.result()
