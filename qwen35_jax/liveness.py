"""The processes of a run end together: each hears at once why another ended, says so in one line, and ends too.

Without this the others would wait in a collective operation for minutes. Nothing interrupts one, so a thread listens
(`qwen35_jax.switchboard` tells it) and ends the process. What must be brought to an end before is registered with
`call_at_end`. In a run of one process, every function here returns at once.
"""

import atexit
import contextlib
import ctypes
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from qwen35_jax.switchboard import GREETING, LEAVING_SECONDS, Connection, Message, Switchboard, gone

JOIN_SECONDS = 300.0
"""How long the processes wait for each other at the start: machines of a cluster may start minutes apart."""
MACHINE_FAULT = 74
"""``EX_IOERR`` of sysexits.h: the exit code where the machine failed, and of a run that lost a process."""

# How long a process that fails waits whether the end of another is the cause: where one is lost, the others meet errors
# of the network in their own operations.
_CAUSE_SECONDS = 1.5
# For all that is brought to an end. If a process is gone, a save may wait for it, and an abort waits six seconds.
_ENDINGS_SECONDS, _ENDINGS_WITHOUT_SECONDS = 15.0, 4.0
# For each of the endings, should one before have used up the time.
_ENDING_SECONDS = 0.5
_DEFECT = 1
_RELAYED = re.compile(r"process \d+\b")

AtEnd = Callable[[], str | None]

_endings: list[AtEnd] = []
_line: "_Line | None" = None


def call_at_end(callback: AtEnd) -> Callable[[], None]:
    """Has a function called before another process's end, or a failure of this one, ends this process.

    The last one registered is called first, each in a thread of its own that is left behind if it takes too long. The
    text it returns is added to the line about a process or machine that failed. In a run of one process nothing is
    registered.

    Returns:
      What takes it back.
    """
    if _line is not None:
        _endings.append(callback)

    def forget() -> None:
        with contextlib.suppress(ValueError):
            _endings.remove(callback)

    return forget


def exchange(value: Any) -> list[Any]:
    """Returns the values of all processes in their order, without the devices; JSON must be able to hold a value."""
    return [value] if _line is None else _line.exchange(value)


def end_all(message: str, code: int) -> None:
    """Ends all processes with an error of this one. It returns in a run of one process only."""
    if _line is not None:
        _line.fail(message, code)


def connect(coordinator: str, count: int, index: int, *, limit: float = JOIN_SECONDS) -> None:
    """Waits until all processes have come, and listens to them from then on.

    Args:
      coordinator: ``host:port`` of process 0.

    Raises:
      ValueError: a process does not come, or they do not fit each other.
      OSError: the port is in use.
    """
    global _line
    host, _, port = coordinator.rpartition(":")
    switchboard = None
    if index == 0:
        try:
            switchboard = Switchboard(int(port), count, limit)
        except OSError as err:
            raise ValueError(f"process 0 cannot listen at port {port} ({err.strerror})") from err
        switchboard.start()
        host = "127.0.0.1"
    connection = _call(host.strip("[]"), int(port), limit)
    who = f"{socket.gethostname()}, process id {os.getpid()}"
    connection.send({"greeting": GREETING, "index": index, "count": count, "who": who})
    messages: list[Message] = []
    while not messages:
        try:
            messages = connection.receive()
        except (EOFError, ValueError):
            messages = [{"refused": f"process 0 left, or something else listens at {coordinator}"}]
    if "refused" in messages[0]:
        raise ValueError(messages[0]["refused"])
    _line = _Line(connection, coordinator, switchboard, messages[1:])
    _let_aborts_wait()


def _call(host: str, port: int, limit: float) -> Connection:
    """Connects to process 0, which may start later."""
    deadline = time.monotonic() + limit
    while True:
        try:
            sock = socket.create_connection((host, port), timeout=5.0)
        except OSError as err:
            if time.monotonic() > deadline:
                raise ValueError(f"process 0 did not answer at {host}:{port} within {limit:.0f} s ({err})") from err
            time.sleep(0.2)
        else:
            sock.settimeout(None)
            return Connection(sock)


def _let_aborts_wait() -> None:
    """Lets the thread listen before JAX ends the process: it aborts at once when the host of process 0 is lost.

    The handler is the C library's ``sleep``, called with the number of the signal: an abort waits six seconds.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


class _Line:
    """The line to the switchboard, and the thread that listens at it."""

    def __init__(self, connection: Connection, coordinator: str, switchboard: Switchboard | None, heard: list[Message]):
        self._connection, self._coordinator, self._switchboard = connection, coordinator, switchboard
        self._answers: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._finished = threading.Event()
        self._end_once = threading.Lock()
        threading.Thread(target=self._listen, args=(heard,), name="liveness", daemon=True).start()
        # Before JAX's own, which waits for the others.
        atexit.register(self._finish)
        self._excepthook, sys.excepthook = sys.excepthook, self._fail_of_defect

    def exchange(self, value: Any) -> list[Any]:
        self._connection.send({"say": value})
        return self._answers.get()

    def fail(self, message: str, code: int) -> None:
        # Twice as long for what another process has told this one.
        time.sleep(2 * _CAUSE_SECONDS if _RELAYED.match(message) else _CAUSE_SECONDS)
        self._connection.send({"failed": message, "code": code})
        time.sleep(_ENDINGS_SECONDS)
        self._end({"line": message, "code": code, "gone": False})

    def _fail_of_defect(self, kind: type[BaseException], err: BaseException, trace: TracebackType | None) -> None:
        time.sleep(_CAUSE_SECONDS)
        self._excepthook(kind, err, trace)
        self.fail(f"{kind.__name__}: {err} (its own output has the traceback)".replace("\n", " "), _DEFECT)

    def _finish(self) -> None:
        self._connection.send({"finished": True})
        self._finished.wait()
        if self._switchboard is not None:
            self._switchboard.join()  # the others are told as well

    def _listen(self, messages: list[Message]) -> None:
        while True:
            for message in messages:
                if "all" in message:
                    self._answers.put(message["all"])
                elif "end" in message:
                    self._end(message["end"])
                else:
                    self._finished.set()
            try:
                messages = self._connection.receive()
            except EOFError:
                if not self._finished.is_set():
                    self._end(gone(0, self._coordinator))
                return

    def _end(self, verdict: Message) -> None:
        """Brings to an end what is registered, prints the line and ends the process."""
        self._end_once.acquire()
        code = MACHINE_FAULT if verdict["code"] is None else verdict["code"]
        # Should anything below block: a full pipe, a lock of the main thread.
        last = threading.Timer(2 * LEAVING_SECONDS / 3, os._exit, (code,))
        last.daemon = True
        last.start()
        hints = _call_endings(_ENDINGS_WITHOUT_SECONDS if verdict["gone"] else _ENDINGS_SECONDS)
        tail = "; ".join(["", *hints]) if code == MACHINE_FAULT else ""
        print(f"error: {verdict['line']}{tail}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        last.cancel()
        if self._switchboard is not None:
            self._switchboard.join(LEAVING_SECONDS)
        os._exit(code)


def _call_endings(seconds: float) -> list[str]:
    """Calls what is registered, and returns what it has to say."""
    hints: list[str] = []

    def call(callback: AtEnd) -> None:
        # It may fail for the reason that the run ends for.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            hint = callback()
            if hint is not None:
                hints.append(hint)

    deadline = time.monotonic() + seconds
    for callback in reversed(_endings):
        thread = threading.Thread(target=call, args=(callback,), daemon=True)
        thread.start()
        thread.join(max(deadline - time.monotonic(), _ENDING_SECONDS))
    return hints
