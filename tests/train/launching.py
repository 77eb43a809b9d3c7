"""Runs the command in processes of its own; compiled steps are shared through a cache."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.xla import flags
from train.observe.metrics import METRICS, read_entries

REPO = Path(__file__).resolve().parents[2]
TINY = str(REPO / "configs" / "tiny_sft.py")
# With its usual eps, Adam would blow the rounding of the smallest gradients up to steps of full size.
LORA = (
    *("--optim.eps", "1e-4"),
    *("--steps", "9", "--checkpoint.every", "3", "--accumulation", "2", "--data.sequence-length", "64"),
    *("--lora.rank", "4", "--lora.dropout", "0.1", "--optim.warmup-steps", "2"),
)
# A batch a second, so that a signal arrives before the run ends: JAX looks for one once a second.
SLOW_DATA = """
import time
from configs.tiny_sft import config
from train.data.shards import Shard

read = Shard.next_sequences

def next_sequences(self, count):
    time.sleep(1)
    return read(self, count)

Shard.next_sequences = next_sequences
"""


class Command:
    """Starts ``python -m train.sft`` on the inputs of the tests."""

    def __init__(self, inputs: Path, cache: Path):
        self._inputs, self._cache = inputs, cache

    def start(self, workdir, *options, config=TINY, devices=1, processes=1, last=(), code=None):
        """Starts the processes of one run, each with so many devices, and returns them.

        Args:
          last: options of the last process alone.
          code: Python to run in place of the command, which gets its arguments.
        """
        env = environment(devices=devices) | {
            "JAX_COMPILATION_CACHE_DIR": str(self._cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        files = ("--model.path", self._inputs / "base", "--data.path", self._inputs / "train.jsonl")
        program = ("-m", "train.sft") if code is None else ("-c", code)
        command = [sys.executable, *program, config, *map(str, (*files, "--workdir", workdir)), *options]
        address = ("--processes.coordinator", f"127.0.0.1:{free_port()}", "--processes.count", str(processes))
        joined = [(*address, "--processes.index", str(index)) for index in range(processes)] if processes > 1 else [()]
        joined[-1] = (*joined[-1], *last)
        return [
            subprocess.Popen(
                [*command, *each], cwd=REPO, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for each in joined
        ]

    def run(self, workdir, *options, **where):
        """Runs to the end and returns what process 0 printed."""
        return finish(self.start(workdir, *options, **where))


def environment(*, devices):
    """Returns the variables of a process that sees so many devices and imports from the checkout."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(devices), "PYTHONPATH": str(REPO)}


def free_port():
    """Returns a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def finish(processes, code=0):
    """Waits for all processes, checks their exit code, and returns what the first one printed."""
    outputs = [process.communicate(timeout=600) for process in processes]
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
    return outputs[0][0]


def wait_for_step(processes, workdir, step):
    """Returns as soon as the row of a step is written; a save before it may still be under way."""
    wait_until(lambda: has_row(workdir / METRICS, step), processes)


def wait_for_save(processes, workdir, step):
    """Returns as soon as the checkpoint of a step, or of a later one, is whole."""
    wait_until(lambda: any(saved >= step for saved in saved_steps(workdir)), processes)


def has_row(path, step):
    """Returns whether a file of metrics holds the row of a step."""
    return path.is_file() and f'"step": {step},' in path.read_text()


def saved_steps(workdir):
    """Returns the steps whose checkpoint is whole."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def wait_until(condition, processes=()):
    """Returns as soon as a condition holds, which must be before one of the processes ends."""
    deadline = time.monotonic() + 600
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill(processes):
    """Ends them as a lost machine does."""
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()


def timeless(workdir):
    """Returns the rows of metrics without what depends on the clock."""
    return [
        {name: value for name, value in row.items() if not name.endswith(("seconds", "per_second"))}
        for row in read_entries(workdir / METRICS)
    ]
