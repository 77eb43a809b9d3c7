"""Runs that begin at an adapter or a step of another run, that grow longer, and that train some weights only."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from qwen35_jax.hf.safetensors import read_checkpoint
from qwen35_jax.runs import STATE, stored_arrays
from tests.train.launching import LORA, finish, timeless
from train.record import read_whole_record


@pytest.mark.slow
def test_a_run_goes_on_from_an_adapter(command, whole_run, tmp_path):
    before = whole_run[0] / "export"
    out = command.run(tmp_path / "run", *LORA, "--model.adapter", str(before), "--optim.learning-rate", "1e-6")
    config = json.loads((tmp_path / "run" / "export" / "adapter_config.json").read_text())
    assert config["r"] == 4 and "mtp.layers.0.self_attn.q_proj" in out
    # It begins where the other run had ended, and a tiny rate leaves it there.
    assert timeless(tmp_path / "run")[0]["loss"] < timeless(whole_run[0])[0]["loss"] - 0.3
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (before, tmp_path / "run" / "export"))
    assert old.keys() == new.keys()
    for name, factor in old.items():
        np.testing.assert_allclose(new[name], factor, atol=2e-5)
    assert read_whole_record(tmp_path / "run")["recipe"]["model"]["adapter"] == str(before)


@pytest.mark.slow
def test_a_run_branches_from_a_step(command, whole_run, tmp_path):
    origin = f"{whole_run[0]}@6"
    out = command.run(tmp_path / "run", *LORA, "--branch-from", origin)
    assert "begins with what step 6 of" in out and "the data go on after batch 6 of that run" in out
    ours, theirs = timeless(tmp_path / "run"), timeless(whole_run[0])
    # The batches are those that would have followed; dropout and the rate are those of a first step.
    assert [row["tokens"] for row in ours[:3]] == [row["tokens"] for row in theirs[6:]]
    assert ours[0]["loss"] == pytest.approx(theirs[6]["loss"], rel=0.05)
    assert [row["step"] for row in ours] == list(range(1, 10))
    assert [row["learning_rate"] for row in ours] == [row["learning_rate"] for row in theirs]
    assert read_whole_record(tmp_path / "run")["recipe"]["branch_from"] == origin

    # The same command goes on with the branch; the other run is not needed any more.
    assert "is complete" in command.run(tmp_path / "run", *LORA, "--branch-from", origin)
    error = failure(command, tmp_path / "other", *LORA, "--branch-from", f"{whole_run[0]}@5")
    assert "has no whole checkpoint of step 5, but of 6, 9" in error
    error = failure(command, tmp_path / "other", *LORA, "--lora.rank", "8", "--branch-from", origin)
    assert "that run trained other parameters than this one, such as" in error


def failure(command, workdir, *options):
    """Runs to an error of one line, and returns it."""
    (process,) = command.start(workdir, *options)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2 and err.strip().count("\n") == 0, err
    return err


@pytest.mark.slow
def test_a_lengthened_run_equals_a_long_one(command, tmp_path):
    constant = (*LORA, "--optim.schedule", "constant")
    command.run(tmp_path / "whole", *constant)
    command.run(tmp_path / "grown", *constant, "--steps", "4")
    assert len(timeless(tmp_path / "grown")) == 4
    out = command.run(tmp_path / "grown", *constant)
    assert "resumed after step 4" in out
    assert timeless(tmp_path / "grown") == timeless(tmp_path / "whole")
    ours, theirs = (tmp_path / name / "export" / "adapter_model.safetensors" for name in ("grown", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert "has done 9 steps already" in failure(command, tmp_path / "grown", *constant, "--steps", "8")


@pytest.mark.slow
def test_a_cosine_run_is_not_lengthened_but_branches(command, whole_run, tmp_path):
    error = failure(command, whole_run[0], *LORA, "--steps", "12")
    assert "steps was 9, now 12" in error and f"give --branch-from {whole_run[0]}@STEP" in error


@pytest.mark.slow
def test_the_head_trains_alone_under_a_frozen_trunk(command, inputs, tmp_path):
    """One layer of a stack too. What does not train stays bit for bit, even with weight decay."""
    options = ("--tune", "full", "--steps", "3", "--data.sequence-length", "64", "--optim.weight-decay", "0.1")
    words = ("--train", r"mtp\..*", "layers.2.mlp.up_proj", "--optim.learning-rate", "1e-3")
    finish(command.start(tmp_path / "run", *options, *words, config="configs/tiny_sft.py"))
    exported, source = read_checkpoint(tmp_path / "run" / "export"), read_checkpoint(inputs / "base")
    changed = {name for name in source if content(exported[name]) != content(source[name])}
    assert changed == {name for name in source if name.startswith("mtp.")} | {
        "model.language_model.layers.2.mlp.up_proj.weight"
    }
    arrays = stored_arrays(tmp_path / "run" / "checkpoints" / "3" / STATE)
    moments = {name for name in arrays if ".mu." in name}
    assert moments and all(".mtp." in name or ".up_proj." in name for name in moments)


def content(stored):
    return stored.read((slice(None),) * len(stored.shape), np.float32).tobytes()
