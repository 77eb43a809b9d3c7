"""The quickstart: what it refuses, when it calls itself failed, and the whole of it with a few steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.quickstart import run as quickstart
from examples.quickstart.run import Settings, Stage
from qwen35_jax.command import one_line_errors
from qwen35_jax.hf.safetensors import read_checkpoint
from qwen35_jax.processing.tokenizer import Tokenizer

REPO = Path(__file__).resolve().parents[2]


def scores(accuracy, acceptance):
    accuracies = {
        mode: {"value": accuracy, "low": accuracy, "high": accuracy, "n": 10} for mode in ("thinking", "non_thinking")
    }
    return accuracies | {"mtp": {"accepted": round(acceptance * 100), "proposed": 100}}


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (scores(0.95, 0.9), None),
        (scores(0.3, 0.9), "accuracy with thinking went from 0.050 to 0.300"),
        (scores(0.95, 0.5), "MTP drafts went from 0.600 to 0.500"),
    ],
)
def test_it_fails_unless_both_rise(after, problem):
    found = quickstart.what_failed({"base": scores(0.05, 0.6), "tuned": after})
    assert found is None if problem is None else problem in found


def test_the_table_has_scores_before_and_after_and_every_stage():
    table = quickstart.table(
        {"base": scores(0.05, 0.6), "tuned": scores(0.95, 0.9)}, [Stage("merge", 2.0, 3.0, 5 * 2**20)]
    )
    assert "accuracy, thinking, n = 10          0.050 [0.050, 0.050]    0.950 [0.950, 0.950]" in table
    assert "0.600 of 100            0.900 of 100" in table
    assert table.splitlines()[-2].split() == ["merge", "2.0", "3.0", "5", "MiB"]


def test_an_earlier_quickstart_is_removed(tmp_path, capsys):
    work = tmp_path / "work"
    quickstart.start_clean(work)
    (work / "old").touch()
    quickstart.start_clean(work)
    assert not (work / "old").exists()
    assert "removing the earlier quickstart" in capsys.readouterr().out


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit), one_line_errors():
        quickstart.start_clean(tmp_path)
    assert "holds no quickstart" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_a_failing_command_stops_it(tmp_path):
    with pytest.raises(SystemExit, match="'score' ended with exit code 2"):
        quickstart.run("score", ["eval.run", "configs/absent.py"], cache=tmp_path)


def test_inputs_are_a_whole_checkpoint(tmp_path):
    stage = quickstart.make_inputs(Settings(workdir=tmp_path, num_train=20, num_test=5))
    names = read_checkpoint(tmp_path / "random")
    assert any(name.startswith("mtp.") for name in names)
    assert any(".visual." in name for name in names)
    assert stage.peak_bytes > 2**20
    ends = json.loads((tmp_path / "random" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == list(Tokenizer.from_pretrained(tmp_path / "random").eos_token_ids)


@pytest.mark.slow
def test_the_whole_of_it_with_a_few_steps(tmp_path):
    work = tmp_path / "work"
    command = [sys.executable, "-m", "examples.quickstart.run", "--workdir", str(work)]
    command += ["--base-steps", "25", "--lora-steps", "15", "--num-train", "200", "--num-test", "8"]
    result = subprocess.run(
        command, cwd=REPO, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=900
    )
    # So few steps teach nothing, and it must say so.
    assert result.returncode == 1, result.stdout + result.stderr
    assert "the quickstart failed: accuracy with thinking" in result.stderr
    report = json.loads((work / quickstart.REPORT).read_text())
    assert len(report["stages"]) == 8
    assert all(stage["seconds"] > 0 and stage["peak_bytes"] > 0 for stage in report["stages"])
    for model in ("base", "tuned"):
        assert 0 <= report["scores"][model]["mtp"]["accepted"] <= report["scores"][model]["mtp"]["proposed"]
        assert report["scores"][model]["thinking"]["n"] == 8
    for field in ("accuracy, thinking, n = 8", "accuracy, non-thinking, n = 8", "MTP drafts accepted", "peak memory"):
        assert field in result.stdout
    assert read_checkpoint(work / "merged").keys() == read_checkpoint(work / "random").keys()
