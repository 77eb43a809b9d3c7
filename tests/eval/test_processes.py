"""Several processes share out the documents: the files are those of one process, also after one was lost."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPO
from tests.eval.conftest import write_rows
from tests.eval.test_backends import checkpoint  # noqa: F401  (a fixture)
from tests.eval.test_run import files
from tests.train.launching import environment, finish, free_port

COUNT = 24


@pytest.fixture
def start(checkpoint, tmp_path, tmp_path_factory):  # noqa: F811
    """Starts the processes of one evaluation, sampled, two responses to each question."""
    rows = [{"question": f"{n}+1?" + " 1" * n, "answer": "1", "id": f"q{n}"} for n in range(COUNT)]
    write_rows(tmp_path / "data" / "qa" / "test.jsonl", rows)
    env = environment(devices=1) | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(out, count=1, new_tokens=40):
        command = [sys.executable, "-m", "eval.run", REPO / "configs" / "tiny_eval.py", "--model.path", checkpoint]
        command += ["--data-dir", tmp_path / "data", "--out", out, "--mode", "thinking", "--protocol", "card"]
        command += ["--repeats", 2, "--slots", 2, "--max-new-tokens", new_tokens]
        address = ["--processes.coordinator", f"127.0.0.1:{free_port()}", "--processes.count", count]
        joined = [[*address, "--processes.index", index] for index in range(count)] if count > 1 else [[]]
        return [
            subprocess.Popen(
                [str(part) for part in (*command, *each)],
                cwd=REPO, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for each in joined
        ]  # fmt: skip

    return start


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(start, tmp_path):
    printed = finish(start(tmp_path / "one"))
    assert "accuracy" in printed
    finish(start(tmp_path / "two", count=2))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len((tmp_path / "two" / "samples" / "qa.jsonl").read_text().splitlines()) == 2 * COUNT


@pytest.mark.slow
def test_a_lost_process_costs_only_samples_that_were_not_finished(start, tmp_path):
    finish(start(tmp_path / "whole", new_tokens=150))
    out = tmp_path / "broken"
    processes = start(out, count=2, new_tokens=150)
    parts = [out / "samples" / name for name in ("qa.jsonl", "qa.process1.jsonl")]
    until = time.monotonic() + 120
    while not all(part.exists() and part.read_bytes().count(b"\n") >= 2 for part in parts):
        assert time.monotonic() < until and all(process.poll() is None for process in processes)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert processes[0].returncode != 0 and "Traceback" not in errors[0], errors[0]
    stored = [json.loads(line) for part in parts for line in part.read_text().split("\n")[:-1]]
    assert 4 <= len(stored) < 2 * COUNT

    finish(start(out, new_tokens=150))
    assert files(tmp_path / "whole") == files(out)
    results = json.loads((out / "results.json").read_text())
    assert results["seconds"]["resumed_samples"] >= len(stored)
