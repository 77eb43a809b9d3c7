"""A run whose directory lies in a bucket trains, resumes and exports as one on a disk does."""

import json
import signal
import time
from random import Random, randrange

import numpy as np
import pytest

from tests.gcs.emulator import Fault
from tests.train.bucket import BucketRun, local_export
from tests.train.launching import LORA, kill, timeless


@pytest.fixture
def bucket(place, inputs, tmp_path):
    return BucketRun(place, inputs, tmp_path)


def test_a_run_in_a_bucket_equals_one_on_a_disk(command, whole_run, bucket, inputs):
    before = len(bucket.place.emulator.requests)
    out = command.run(bucket.workdir, *LORA, *bucket.inputs)
    assert f"exported to {bucket.workdir}/export" in out
    check_equals(bucket, whole_run[0], inputs)
    record = json.loads(bucket.place.get("run/config.json"))
    assert record["outcome"] == json.loads((whole_run[0] / "config.json").read_text())["outcome"]
    assert bucket.finished_steps() == [6, 9]
    # The lock is given back, and nothing stays on this disk.
    assert ".lock" not in bucket.names() and not list(bucket.cache.glob("*/*"))

    # The rows of a step are in the bucket before anything of its checkpoint.
    writes = [
        name.partition("/run/")[2] for method, _, name in bucket.place.emulator.requests[before:] if method == "POST"
    ]
    for step in (3, 6, 9):
        first = next(i for i, name in enumerate(writes) if name.startswith(f"checkpoints/{step}/"))
        last = max(i for i, name in enumerate(writes[:first]) if name == "metrics.jsonl")
        assert not any(name.startswith("checkpoints/") for name in writes[last:first])


@pytest.mark.slow
def test_kills_after_steps_change_nothing(command, whole_run, bucket, inputs):
    """Before the first save, between saves, and at a saved step: each loses what came after the last save at most."""
    for step in (2, 4, 6, 7):
        processes = command.start(bucket.workdir, *LORA, *bucket.inputs)
        bucket.wait_for_row(processes, step)
        kill(processes)
        print(f"killed after step {step}; finished: {bucket.finished_steps()}; {len(bucket.names())} objects")
    # The save of step 6 may have been under way, but it began when the one of step 3 was whole.
    assert (last := bucket.finished_steps()[-1]) in (3, 6)
    assert f"resumed after step {last}" in command.run(bucket.workdir, *LORA, *bucket.inputs)
    check_equals(bucket, whole_run[0], inputs)


@pytest.mark.soak
def test_kills_in_saves_change_nothing(command, bucket, inputs, tmp_path):
    short = (*LORA, "--steps", "60", "--checkpoint.every", "2")
    random = Random(seed := randrange(1000))
    print(f"seed {seed}")
    step = 0
    for _ in range(8):
        processes = command.start(bucket.workdir, *short, *bucket.inputs)
        bucket.wait_for_row(processes, step := step + random.randint(4, 6))
        time.sleep(random.uniform(0, 0.4))
        assert processes[0].poll() is None, processes[0].communicate()
        kill(processes)
        halves = {name.split("/")[1] for name in bucket.names() if name.startswith("checkpoints/")}
        print(f"finished: {bucket.finished_steps()}; not finished: {halves - set(map(str, bucket.finished_steps()))}")
    assert "resumed after step" in command.run(bucket.workdir, *short, *bucket.inputs)
    command.run(tmp_path / "whole", *short)
    check_equals(bucket, tmp_path / "whole", inputs)


@pytest.mark.soak
def test_two_processes_keep_others_out_and_one_goes_on_for_both(command, bucket, inputs, tmp_path):
    options = (*LORA, "--mesh.data", "2", *bucket.inputs)
    processes = command.start(bucket.workdir, *options, processes=2)
    bucket.wait_for_save(processes, 3)
    # Else they would come to the next save while the other one starts.
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    [other] = command.start(bucket.workdir, *LORA, *bucket.inputs)
    error = last_line(other, code=2)
    assert f"{bucket.workdir} is in use by process {processes[0].pid} on " in error
    kill(processes)
    out = command.run(bucket.workdir, *options, devices=2)
    assert "resumed after step 3" in out
    command.run(tmp_path / "whole", *LORA, "--mesh.data", "2", devices=2)
    ours, theirs = bucket.rows(), timeless(tmp_path / "whole")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    # Two processes sum in another order than one.
    np.testing.assert_allclose([row["loss"] for row in ours], [row["loss"] for row in theirs], rtol=1e-5)
    assert bucket.export().keys() == local_export(tmp_path / "whole", inputs, "").keys()


HANG = """
import sys
from functools import partial
import orbax.checkpoint as ocp
from train.sft import main
ocp.options.AsyncOptions = partial(ocp.options.AsyncOptions, timeout_secs=8)
main(sys.argv[1:])
"""


@pytest.mark.soak
def test_a_bucket_that_takes_no_arrays_ends_the_run_in_one_line(command, bucket):
    """Orbax's threads would keep the process for ever."""
    bucket.place.fail(Fault("refuse", "POST|PUT", name="/state/.*d/", status=503))
    [process] = command.start(bucket.workdir, *LORA, *bucket.inputs, code=HANG)
    assert "the storage service did not do it in time" in last_line(process, code=74)
    bucket.place.fail()
    assert "exported to" in command.run(bucket.workdir, *LORA, *bucket.inputs)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (Fault("refuse", "POST|PUT", name="/checkpoints/", status=403, message="not you"), 2, "(not you)"),
        (Fault("lose", "POST|PUT", name="/3/state/d/"), 74, "the bucket loses writes"),
        (Fault("lose", "POST|PUT", name="/metrics.jsonl$", after=1), 74, "metrics.jsonl is missing"),
        (
            Fault("lose", "POST|PUT", name="/export/adapter_config.json$"),
            74,
            "adapter_config.json is missing right after",
        ),
        (Fault("refuse", "POST|PUT", name="/.lock$", status=403, message="not you"), 2, "(not you)"),
    ],
)
def test_a_fault_ends_a_run_in_one_line_and_it_goes_on_later(command, whole_run, bucket, inputs, fault, code, said):
    bucket.place.fail(fault)
    [process] = command.start(bucket.workdir, *LORA, *bucket.inputs)
    error = last_line(process, code=code)
    assert said in error and bucket.place.address in error
    bucket.place.fail()
    command.run(bucket.workdir, *LORA, *bucket.inputs)
    # A lost object is lost with the rows that it held; the checkpoints beside it stay.
    check_equals(bucket, whole_run[0], inputs, lost_rows=3 if "metrics" in said else 0)


def check_equals(bucket, workdir, inputs, *, lost_rows=0):
    assert bucket.rows() == timeless(workdir)[lost_rows:]
    ours, theirs = bucket.export(), local_export(workdir, inputs, bucket.place.address)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == set()


def last_line(process, *, code):
    """Waits for the end of a process and returns the error that it printed, which must be one line."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
    # Libraries warn that there are no credentials, and the progress bar is on stderr too.
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err, err
    return errors[0]
