"""Processes end together, in one line and within seconds, whichever fails and however. No JAX: only the lines."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from qwen35_jax.switchboard import GREETING, Connection, Switchboard
from tests.train.launching import REPO, free_port

# Long before the 30 seconds that are promised, and long enough for a busy machine.
SOON = 15
PROCESS = """
import os, sys, threading, time
from qwen35_jax.command import one_line_errors
from qwen35_jax.liveness import call_at_end, connect, end_all, exchange

address, count, index, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
with one_line_errors():
    connect(address, count, index, limit=limit)
    exec(sys.argv[5])
    print("joined", flush=True)
    exchange("printed")
    exec(sys.argv[6])
"""


class Run:
    """So many processes, each with what it does."""

    def __init__(self, *bodies, count=None, limit=60, first="pass"):
        self.address, self.first = f"127.0.0.1:{free_port()}", first
        self.count = count or len(bodies)
        self.processes = [self.start(index, body, limit=limit) for index, body in enumerate(bodies)]

    def start(self, index, body, *, limit=60, count=None):
        arguments = (self.address, str(count or self.count), str(index), str(limit), self.first, body)
        return subprocess.Popen(
            [sys.executable, "-c", PROCESS, *arguments],
            cwd=REPO, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def joined(self):
        for process in self.processes:
            assert process.stdout.readline() == "joined\n"
        return self

    def ends(self, within=SOON):
        """Returns exit code and stderr of every process, which must end in time."""
        deadline = time.monotonic() + within
        outputs = [process.communicate(timeout=deadline - time.monotonic()) for process in self.processes]
        return [(process.returncode, err) for process, (_, err) in zip(self.processes, outputs, strict=True)]


WAIT = "time.sleep(600)"


@pytest.mark.parametrize(("who", "count"), [(0, 2), (2, 4)])
@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("raise ValueError('a.jsonl, line 7: bad')", 2, "error: process {}: a.jsonl, line 7: bad"),
        ("raise OSError(28, 'No space left on device', '/d')", 74, "error: process {}: /d: No space left on device"),
        ("raise KeyError('x')", 1, "error: process {}: KeyError: 'x' (its own output has the traceback)"),
        ("raise KeyboardInterrupt", 130, "error: process {}: interrupted"),
        ("os._exit(9)", 74, "error: process {} ("),
    ],
)  # fmt: skip
def test_all_end_with_the_error_of_one(who, count, body, code, line):
    bodies = [WAIT] * count
    bodies[who] = body
    for index, (ended, err) in enumerate(Run(*bodies).joined().ends()):
        if index == who and line.endswith("("):
            continue
        [last] = [each for each in err.splitlines() if each.startswith("error:")]
        assert last.startswith(line.format(who)) and ended == code
        assert ("Traceback" in err) == (index == who and code == 1)


@pytest.mark.parametrize("who", [0, 1])
def test_a_killed_process_is_named_with_what_is_saved(who):
    run = Run(WAIT, WAIT, first="call_at_end(lambda: 'step 4 is saved')").joined()
    run.processes[who].send_signal(signal.SIGKILL)
    code, err = run.ends()[1 - who]
    assert code == 74 and f"process {who} (" in err and err.endswith("is saved\n") and len(err.splitlines()) == 1


def test_work_under_way_is_ended_first(tmp_path):
    mark = tmp_path / "saved"
    slow = f"call_at_end(lambda: (time.sleep(2), open({str(mark)!r}, 'w'))[0])"
    run = Run(WAIT, "raise ValueError('no')", first=slow).joined()
    assert [code for code, _ in run.ends()] == [2, 2] and mark.exists()


@pytest.mark.parametrize("error", ["RuntimeError", "ValueError"])
def test_a_failure_that_another_causes_is_not_the_reason(error):
    # As the others of a killed process meet an error of the network in their own operation.
    run = Run(f"raise {error}('Gloo: connection closed by peer')", "time.sleep(0.2); os.kill(os.getpid(), 9)")
    (code, err), _ = run.joined().ends()
    assert code == 74 and "process 1 (" in err and "is gone" in err and "Traceback" not in err


def test_an_abort_waits_for_the_reason():
    # JAX aborts the others at once when the host of process 0 is lost, and a save may wait for it for ever.
    first = f"call_at_end(lambda: 'step 4 is saved'); call_at_end(lambda: {WAIT})"
    abort = "import ctypes; ctypes.CDLL(None).abort()"
    _, (code, err) = Run("time.sleep(0.2); os._exit(9)", abort, first=first).joined().ends()
    assert code == 74 and "process 0 (" in err and err.endswith("is saved\n")


def test_a_process_that_stops_or_holds_the_lock_of_python_is_not_gone():
    hold = "import ctypes; ctypes.PyDLL(None).sleep(4); print(exchange(index))"
    run = Run(hold, "print(exchange(index))").joined()
    run.processes[1].send_signal(signal.SIGSTOP)
    time.sleep(5)
    run.processes[1].send_signal(signal.SIGCONT)
    assert run.ends() == [(0, ""), (0, "")]


def test_processes_exchange_values_and_leave_in_any_order():
    body = "assert exchange([index]) == [[0], [1], [2]]; assert exchange(None) == [None] * 3; time.sleep({})"
    assert Run(body.format(1), body.format(0), body.format(0.5)).joined().ends() == [(0, "")] * 3


def test_a_failure_after_the_work_of_the_others_reaches_them():
    (first, _), (second, err) = Run("time.sleep(1); raise ValueError('no export')", "pass").joined().ends()
    assert first == second == 2 and "process 0: no export" in err


def test_processes_that_do_not_come_are_named():
    run = Run(WAIT, WAIT, count=4, limit=2)
    for code, err in run.ends():
        assert code == 2 and "of 4 processes these did not come within 2 s: 2, 3" in err


def test_process_0_that_does_not_come_is_named():
    run = Run(count=2)
    run.processes = [run.start(1, WAIT, limit=1)]
    [(code, err)] = run.ends()
    assert code == 2 and f"process 0 did not answer at {run.address} within 1 s" in err


def test_processes_that_do_not_fit_are_refused():
    run = Run(WAIT, count=3)
    run.processes.append(run.start(1, WAIT, count=2))
    for _, err in run.ends():
        assert "is one of 2 processes, process 0 one of 3" in err
    run = Run(WAIT, WAIT, count=3)
    run.processes.append(run.start(1, WAIT))
    for _, err in run.ends():
        assert "two processes say that they are process 1: " in err


def test_process_0_hears_of_one_that_does_not_fit_and_came_before_it():
    port = free_port()
    Switchboard(port, 3, 60).start()
    for index, count in [(1, 2), (0, 3)]:
        call = Connection(socket.create_connection(("127.0.0.1", port)))
        call.send({"greeting": GREETING, "index": index, "count": count, "who": "a host"})
        call.socket.settimeout(SOON)
        [answer] = call.receive()
        assert "process 1 (a host) is one of 2 processes, process 0 one of 3" in answer["refused"]


def test_a_process_may_go_and_come_again_before_all_are_there():
    run = Run("pass", count=3)
    early = run.start(1, WAIT)
    time.sleep(1)
    early.kill()
    early.communicate()
    run.processes += [run.start(1, "pass"), run.start(2, "pass")]
    assert run.ends() == [(0, "")] * 3
