"""Real prompts, sampled, killed twice: the files end equal to those of a run that nobody interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPO, shared_dir
from tests.eval.conftest import write_rows
from tests.eval.test_backends import checkpoint  # noqa: F401  (a fixture)
from tests.eval.test_run import files

NUM_QUESTIONS = 500
LONGEST_QUESTION = 2000


def write_data(folder: Path) -> Path:
    """Writes the 541 prompts of IFEval and 500 questions of MMLU-Pro as users would have them."""
    data = shared_dir() / "data"
    rows = [json.loads(line) for line in (data / "ifeval" / "input_data_541.jsonl").open(encoding="utf-8")]
    write_rows(folder / "ifeval" / "train.jsonl", rows)
    with zipfile.ZipFile(data / "mmlu_pro" / "jamba-1.5-large.zip") as archive:
        stored = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")]
    questions = [row for rows in stored for row in rows if len(row["question"]) <= LONGEST_QUESTION]
    names = ("question_id", "question", "options", "answer", "answer_index", "category")
    chosen = random.Random(0).sample(questions, NUM_QUESTIONS)
    write_rows(folder / "mmlu_pro" / "test.jsonl", [{name: row[name] for name in names} for row in chosen])
    (folder / "nltk_data").symlink_to(data / "nltk_data")
    return folder


def command(model: Path, data: Path, out: Path, mode: str) -> list[str]:
    parts = [sys.executable, "-m", "eval.run", REPO / "configs" / "tiny_eval.py", "--model.path", model]
    parts += ["--data-dir", data, "--out", out, "--mode", mode, "--protocol", "card", "--tasks", "ifeval", "mmlu_pro"]
    return [str(part) for part in (*parts, "--max-new-tokens", 48, "--slots", 32)]


def kill_at(process: subprocess.Popen, out: Path, count: int) -> None:
    """Kills a run as soon as it has stored so many samples."""
    paths = [out / "samples" / f"{task}.jsonl" for task in ("ifeval", "mmlu_pro")]
    until = time.monotonic() + 900
    while sum(path.read_bytes().count(b"\n") for path in paths if path.exists()) < count:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def compare(model: Path, data: Path, folder: Path, mode: str, cache: Path) -> dict:
    """Runs once without and once with interruptions, checks that all files are equal, and returns the results."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    whole, broken = folder / "whole", folder / "broken"
    subprocess.run(command(model, data, whole, mode), cwd=REPO, env=env, check=True)
    for count in (150, 700):
        kill_at(subprocess.Popen(command(model, data, broken, mode), cwd=REPO, env=env), broken, count)
    subprocess.run(command(model, data, broken, mode), cwd=REPO, env=env, check=True)
    assert files(whole) == files(broken)
    return json.loads((broken / "results.json").read_text(encoding="utf-8"))


@pytest.mark.soak
@pytest.mark.skipif(shared_dir() is None, reason="the prompts are not beside this checkout")
@pytest.mark.parametrize("mode", ["thinking", "non_thinking"])
def test_a_run_that_was_killed_twice_ends_with_the_files_of_a_whole_one(checkpoint, tmp_path, mode):  # noqa: F811
    results = compare(checkpoint, write_data(tmp_path / "data"), tmp_path, mode, tmp_path / "compiled")
    assert results["tasks"]["ifeval"]["n"] == 541 and results["tasks"]["mmlu_pro"]["n"] == NUM_QUESTIONS
    assert results["seconds"]["resumed_samples"] >= 700
