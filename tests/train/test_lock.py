"""One process at a time works in a directory, whatever became of the one before."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import REPO
from train.lock import LOCK, STALE_SECONDS, lock_directory

HOLD = """
import sys, time
from pathlib import Path
from train.lock import lock_directory
try:
    with lock_directory(Path(sys.argv[1])):
        print("mine", flush=True)
        time.sleep(float(sys.argv[2]))
except ValueError as err:
    print(err)
"""


def start(folder, seconds):
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    return subprocess.Popen(command, cwd=REPO, text=True, stdout=subprocess.PIPE)


def test_of_several_starts_at_once_one_goes_on(tmp_path):
    outs = [process.communicate()[0] for process in [start(tmp_path, 3) for _ in range(6)]]
    assert sum(out.startswith("mine") for out in outs) == 1
    refused = [out for out in outs if not out.startswith("mine")]
    assert all("is in use by process" in out and socket.gethostname() in out for out in refused)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [True, False], ids=["asked for its exit code", "not asked"])
def test_a_killed_owner_gives_way_at_once_and_to_one_start_alone(tmp_path, asked):
    owner = start(tmp_path, 60)
    assert owner.stdout.readline() == "mine\n"
    owner.kill()
    if asked:
        owner.wait()
    outs = [process.communicate()[0] for process in [start(tmp_path, 3) for _ in range(4)]]
    assert sum(out.startswith("mine") for out in outs) == 1
    owner.communicate()


def owned_by(folder, *, age=0.0, **owner):
    path = folder / LOCK
    content = {"host": socket.gethostname(), "pid": os.getpid(), "began": None, "since": "today"} | owner
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_number_that_went_to_another_process_is_no_owner(tmp_path):
    owned_by(tmp_path, began="1")
    with lock_directory(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_an_owner_on_another_host_counts_while_its_file_is_touched(tmp_path):
    owned_by(tmp_path, host="far", pid=7)
    with pytest.raises(ValueError, match=r"in use by process 7 on far since today; .*--workdir.*for 10 minutes"):
        lock_directory(tmp_path).__enter__()
    owned_by(tmp_path, host="far", pid=7, age=STALE_SECONDS + 1)
    with lock_directory(tmp_path):
        pass


def test_a_file_that_was_cut_short_is_nobodys(tmp_path):
    path = tmp_path / LOCK
    path.write_text('{"host"')
    os.utime(path, (time.time() - 60,) * 2)
    with lock_directory(tmp_path):
        pass


def test_the_file_is_touched_while_the_directory_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("train.lock.HEARTBEAT_SECONDS", 0.05)
    with lock_directory(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        time.sleep(0.5)
        assert (tmp_path / LOCK).stat().st_mtime > 0
