"""The telephone exchange of a run's processes, in process 0: it calls the roll, and passes on what concerns all.

Every process holds one connection to it, also process 0. Messages are JSON objects, one a line. The exchange begins on
the coordinator's port, which is open between the hosts already, and leaves it to JAX once all have come; connections
that are made stay.

Nobody sends signs of life. The kernel of a process that ends in any way closes its connection at once, and TCP asks a
machine that is silent whether it is still there. So neither a long compilation nor a process that holds Python's lock
or is paused counts as gone.
"""

import contextlib
import json
import logging
import re
import selectors
import socket
import threading
import time
from typing import Any

GREETING = "qwen35 processes 1"
"""The first word of a connection, with the version of what follows."""
LEAVING_SECONDS = 30.0
"""How long process 0 stays for the others to hear the end from it."""

_NOTICE_SECONDS = 30.0
# A machine that answers nothing for 5 + 3 x 5 seconds is lost.
_SILENCE, _PROBES_APART, _PROBES = 5, 5, 3
_NAMES_A_PROCESS = re.compile(r"process \d+\b|the processes of the run ")

Message = dict[str, Any]

logger = logging.getLogger(__name__)


class Connection:
    """One end of a connection. Reading is for one thread, sending for any."""

    def __init__(self, sock: socket.socket):
        self.socket = sock
        self._rest = b""
        self._sending = threading.Lock()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        options = {
            "TCP_KEEPIDLE": _SILENCE,
            "TCP_KEEPINTVL": _PROBES_APART,
            "TCP_KEEPCNT": _PROBES,
            # The same for what was sent and not acknowledged.
            "TCP_USER_TIMEOUT": 1000 * (_SILENCE + _PROBES_APART * _PROBES),
        }
        for name, value in options.items():
            if hasattr(socket, name):  # not on every system
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Message) -> None:
        """Sends a message; if the other end is gone, reading will tell."""
        with self._sending, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message]:
        """Waits for data and returns the messages that are whole by then.

        Raises:
          EOFError: the other end is gone.
          ValueError: what came is no message.
        """
        try:
            data = self.socket.recv(1 << 16)
        except OSError as err:
            raise EOFError from err
        if not data:
            raise EOFError
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self.socket.close()


class Switchboard(threading.Thread):
    """Takes the calls of all processes of a run.

    Args:
      limit: seconds for all to come.

    Raises:
      OSError: the port is in use.
    """

    def __init__(self, port: int, count: int, limit: float):
        super().__init__(name="switchboard", daemon=True)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(("", port), family=family, backlog=count, dualstack_ipv6=dual)
        self._count, self._limit = count, limit
        self._calls: dict[int, Connection] = {}
        self._who: dict[int, str] = {}
        self._said: dict[int, Any] = {}
        self._finished: set[int] = set()
        self._ends_at: float | None = None

    def run(self) -> None:
        with selectors.DefaultSelector() as waiting:
            problem = self._call_roll(waiting)
            self._listener.close()
            self._tell({"refused": problem} if problem else {"go": True})
            if problem:
                self._ends_at = time.monotonic() + LEAVING_SECONDS
            self._serve(waiting)

    def _call_roll(self, waiting: selectors.BaseSelector) -> str | None:
        """Waits until all have come, or process 0 and one that does not fit; returns what stands against the run."""
        waiting.register(self._listener, selectors.EVENT_READ)
        began = time.monotonic()
        noticed = began
        problem = None
        while len(self._calls) < self._count and not (problem and 0 in self._calls):
            now = time.monotonic()
            absent = ", ".join(str(index) for index in range(self._count) if index not in self._calls)
            if now - began > self._limit:
                return f"of {self._count} processes these did not come within {self._limit:.0f} s: {absent}"
            if now - noticed > _NOTICE_SECONDS:
                noticed = now
                logger.warning("waiting for processes %s of %d since %.0f s", absent, self._count, now - began)
            for key, _ in waiting.select(0.5):
                call = key.fileobj
                if not isinstance(call, Connection):
                    with contextlib.suppress(OSError):
                        sock, _ = self._listener.accept()
                        waiting.register(Connection(sock), selectors.EVENT_READ)
                elif against := self._hear_caller(call, waiting):
                    problem = problem or against
                    call.send({"refused": problem})
        waiting.unregister(self._listener)
        return problem

    def _hear_caller(self, call: Connection, waiting: selectors.BaseSelector) -> str | None:
        """Takes the name of a caller, or notes that it is gone again."""
        try:
            names = [[message[key] for key in ("greeting", "index", "count", "who")] for message in call.receive()]
        except (EOFError, ValueError, KeyError, TypeError):  # it gave up, or something else that tries ports
            waiting.unregister(call)
            call.close()
            self._calls = {index: other for index, other in self._calls.items() if other is not call}
            return None
        for greeting, index, count, who in names:
            if greeting != GREETING:
                return f"process {index} ({who}) has another version of the code"
            if count != self._count:
                return f"process {index} ({who}) is one of {count} processes, process 0 one of {self._count}"
            if index in self._calls:
                return f"two processes say that they are process {index}: {self._who[index]} and {who}"
            self._calls[index], self._who[index] = call, who
        return None

    def _serve(self, waiting: selectors.BaseSelector) -> None:
        while set(self._calls) - {0} and len(self._finished) < self._count:
            if self._ends_at is not None and time.monotonic() > self._ends_at:
                return
            ready = {key.fileobj for key, _ in waiting.select(0.5)}
            for index, call in list(self._calls.items()):
                if call not in ready:
                    continue
                try:
                    for message in call.receive():
                        self._take(index, message)
                except EOFError:
                    waiting.unregister(call)
                    self._lose(index)

    def _take(self, index: int, message: Message) -> None:
        if "say" in message:
            self._said[index] = message["say"]
            if len(self._said) == self._count:
                values = [self._said[each] for each in range(self._count)]
                self._said.clear()
                self._tell({"all": values})
        elif "failed" in message:
            line = message["failed"]
            named = line if _NAMES_A_PROCESS.match(line) else f"process {index}: {line}"
            self._end({"line": named, "code": message["code"], "gone": False})
        else:
            self._finished.add(index)
            if len(self._finished) == self._count:
                self._tell({"finished": True})

    def _lose(self, index: int) -> None:
        self._calls.pop(index).close()
        if len(self._finished) < self._count:
            self._end(gone(index, self._who[index]))

    def _end(self, verdict: Message) -> None:
        """Tells all why the run ends; the first reason counts."""
        if self._ends_at is None:
            self._ends_at = time.monotonic() + LEAVING_SECONDS
            self._tell({"end": verdict})

    def _tell(self, message: Message) -> None:
        # Process 0 last: it may leave at once, and this thread with it.
        for index in sorted(self._calls, reverse=True):
            self._calls[index].send(message)


def gone(index: int, who: str) -> Message:
    """Returns the verdict on a process that ended without a word."""
    reason = "it was killed or ran out of memory, or its machine or network failed"
    return {"line": f"process {index} ({who}) is gone: {reason}", "code": None, "gone": True}
