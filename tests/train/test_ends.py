"""Whatever ends one process of a run ends all, in one line and in time; nothing sound is lost."""

import shutil
import signal
import time

import pytest

from tests.train.launching import LORA, finish, saved_steps, timeless, wait_for_save, wait_for_step

# What is promised.
IN_TIME = 30
OPTIONS = (*LORA, "--mesh.data", "2", "--checkpoint.every", "4")

# The data of process 1 fail at the sixth batch, as a row does that was damaged after the start.
BAD = """
import os, sys
from configs.tiny_sft import config
from train.data.shards import Shard

read, calls = Shard.next_sequences, []

def next_sequences(self, count):
    calls.append(count)
    if len(calls) == 6 and sys.argv[-1] == os.environ.get("BAD", "1"):
        raise {error}
    return read(self, count)

Shard.next_sequences = next_sequences
"""


def lines_of(processes, code, within=IN_TIME):
    """Waits for the end of all processes, which must come in time, and returns the line of error of each."""
    deadline = time.monotonic() + within
    outputs = [process.communicate(timeout=deadline - time.monotonic()) for process in processes]
    lines = []
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
        [line] = [line for line in err.splitlines() if line.startswith("error:")]
        lines.append(line)
    return lines


# Process 1 sees the folder of checkpoints as it was some steps ago.
STALE = """
import sys
from configs.tiny_sft import config
from train.checkpoint import Checkpoints

if sys.argv[-1] == "1":
    Checkpoints.latest_whole_step = lambda self: {seen}
"""


@pytest.fixture
def bad_data(tmp_path):
    def write(error):
        path = tmp_path / "bad.py"
        path.write_text(BAD.format(error=error))
        return str(path)

    return write


@pytest.mark.slow
def test_a_bad_row_of_one_process_ends_both_after_the_state_before_it_is_saved(command, whole_run, bad_data, tmp_path):
    workdir = tmp_path / "run"
    config = bad_data("ValueError('train.jsonl, line 7: no messages')")
    processes = command.start(workdir, *OPTIONS, config=config, processes=2)
    wait_for_step(processes, workdir, 4)
    for line in lines_of(processes, 2):
        assert line == "error: process 1: train.jsonl, line 7: no messages"
    assert saved_steps(workdir) == [4, 5]
    finish(command.start(workdir, *OPTIONS, processes=2))
    assert [row["step"] for row in timeless(workdir)] == list(range(1, 10))
    assert timeless(workdir)[-1]["loss"] == pytest.approx(timeless(whole_run[0])[-1]["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("OSError(28, 'No space left on device', '/data')", 74, "process 1: /data: No space left on device"),
        ("KeyError('messages')", 1, "process 1: KeyError: 'messages' (its own output has the traceback)"),
    ],
)
def test_a_failing_machine_and_a_defect_end_both(command, bad_data, tmp_path, error, code, line):
    workdir = tmp_path / "run"
    processes = command.start(workdir, *OPTIONS, config=bad_data(error), processes=2)
    wait_for_step(processes, workdir, 4)
    for each in lines_of(processes, code):
        assert line in each
    assert 4 in saved_steps(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(("who", "count"), [(0, 2), (1, 2), (2, 4)])
def test_a_killed_process_ends_the_others(command, whole_run, tmp_path, who, count):
    workdir, mesh = tmp_path / "run", ("--mesh.data", str(count))
    options = (*LORA, *mesh, "--checkpoint.every", "4", "--steps", "9")
    processes = command.start(workdir, *options, processes=count)
    wait_for_save(processes, workdir, 4)
    processes[who].send_signal(signal.SIGKILL)
    rest = [process for process in processes if process is not processes[who]]
    for line in lines_of(rest, 74):
        assert line.startswith(f"error: process {who} (") and "is gone" in line
        assert line.endswith("run the same command again to go on after step 4")
    finish(command.start(workdir, *options, processes=count))
    assert timeless(workdir)[-1]["loss"] == pytest.approx(timeless(whole_run[0])[-1]["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (6, "the processes of the run disagree: newest whole checkpoint is 9 in process 0 and 6 in process 1"),
        (None, "process 1: {} holds metrics or an export of a run whose checkpoints are gone"),
    ],
)
def test_a_stale_view_of_the_checkpoints_ends_both(command, whole_run, tmp_path, seen, line):
    workdir, config = tmp_path / "run", tmp_path / "stale.py"
    shutil.copytree(whole_run[0], workdir)
    config.write_text(STALE.format(seen=seen))
    processes = command.start(workdir, *LORA, "--mesh.data", "2", config=str(config), processes=2)
    while "data: an epoch" not in processes[0].stdout.readline():  # Python and JAX are up
        assert processes[0].poll() is None
    for each in lines_of(processes, 2):
        assert line.format(workdir) in each
    assert saved_steps(workdir) == saved_steps(whole_run[0])
