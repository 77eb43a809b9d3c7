"""Ctrl-C while a command imports, and while the garbage collector calls back."""

import signal
import subprocess
import sys

import pytest

from tests.conftest import REPO

IN_A_COLLECTION = """
import gc, os, signal, time
from qwen35_jax.command import one_line_errors

def interrupt_once(phase, info):
    gc.callbacks.remove(interrupt_once)
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with one_line_errors():
    gc.callbacks.append(interrupt_once)
    gc.collect()
    time.sleep(20)
"""


def test_an_interrupt_during_a_collection_is_not_forgotten():
    done = subprocess.run([sys.executable, "-c", IN_A_COLLECTION], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("module", ["train.sft", "train.preview", "eval.run", "qwen35_jax.cli generate"])
def test_an_interrupt_while_a_command_imports_prints_nothing(module):
    command = [sys.executable, "-X", "importtime", "-m", *module.split(), "--help"]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "| qwen35_jax.interrupts" not in (line := process.stderr.readline().replace("|  ", "|")):
            assert line, "the command ended before it was interrupted"
        for _ in range(50):  # now it imports what it needs
            process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert all(line.startswith("import time:") for line in rest.splitlines()[:-1])
