"""Whole runs on images: a frozen tower, a trained one, adapters on it, a live teacher, and the way on after a kill."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.train.launching import Command, kill, timeless, wait_for_save
from tests.train.vision_inputs import recipe, write_inputs
from train.config import (
    CheckpointConfig,
    Distillation,
    Layout,
    LoraConfig,
    MtpDistillConfig,
    Options,
    SamplesConfig,
    TeacherConfig,
    TrainConfig,
)
from train.inputs import check_inputs
from train.run import run
from train.samples import read_prompts

TOWER = "model.visual."


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def train(recipe, workdir, **layout):
    run(TrainConfig(recipe, Layout(**layout), Options(checkpoint=CheckpointConfig(every=3))), workdir)
    return timeless(workdir)


def tensors(folder):
    return {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}


def changed(inputs, workdir):
    before, after = tensors(inputs / "base"), tensors(workdir / "export")
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """A run of six steps that nothing interrupted, and its metrics."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, train(constant(inputs, 6), workdir)


def constant(inputs, steps, **fields):
    made = recipe(inputs, steps=steps, **fields)
    return dataclasses.replace(made, optim=dataclasses.replace(made.optim, schedule="constant"))


def test_a_frozen_tower_stays_as_it_is(inputs, whole):
    workdir, metrics = whole
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    found = changed(inputs, workdir)
    assert found and not [name for name in found if name.startswith(TOWER)]


def test_a_lengthened_run_equals_a_long_one(inputs, whole, tmp_path):
    workdir, metrics = whole
    train(constant(inputs, 3), tmp_path / "run")
    assert train(constant(inputs, 6), tmp_path / "run") == metrics
    want = tensors(workdir / "export")
    for name, array in tensors(tmp_path / "run" / "export").items():
        np.testing.assert_array_equal(array, want[name], err_msg=name)


def test_the_merger_trains_alone(inputs, tmp_path):
    train(constant(inputs, 2, train=("merger",)), tmp_path / "run")
    found = changed(inputs, tmp_path / "run")
    assert found and all(name.startswith(f"{TOWER}merger.") for name in found)


def test_adapters_on_the_tower_train(inputs, tmp_path):
    lora = LoraConfig(rank=2, targets=("tower", "merger"))
    metrics = train(constant(inputs, 3, lora=lora), tmp_path / "run")
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_validation_and_a_live_teacher_see_the_images(inputs, tmp_path):
    objective = Distillation(TeacherConfig(own_base=True), mtp=MtpDistillConfig(weight=0.0))
    made = constant(inputs, 2, objective=objective, lora=LoraConfig(rank=2))
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, eval_fraction=0.2))
    first, last = train(made, tmp_path / "run")
    # New adapters change nothing, so that the student is its own teacher at first.
    assert abs(first["divergence"]) < 1e-6
    assert 0 <= last["eval_divergence"] < 1


def test_words_of_the_tower_need_images(inputs):
    text = dataclasses.replace(recipe(inputs).data, vision=None)
    with pytest.raises(ValueError, match="train has 'tower', but a run of text loads no vision tower"):
        recipe(inputs, train=("tower",), data=text)
    with pytest.raises(ValueError, match=r"lora\.targets has 'merger'"):
        recipe(inputs, lora=LoraConfig(targets=("all-linear", "merger")), data=text)


def test_a_run_of_text_refuses_images(inputs, tmp_path):
    made = constant(inputs, 2)
    text = dataclasses.replace(made, data=dataclasses.replace(made.data, vision=None))
    with pytest.raises(ValueError, match=r"train\.jsonl line 2: the row holds images or videos .*data\.vision"):
        train(text, tmp_path / "run")


def test_samples_are_of_the_validation_rows_without_images(inputs, mesh):
    made, rows = recipe(inputs), (inputs / "train.jsonl").read_text()
    lost = rows.splitlines()[1].replace("1_0.png", "none.png") + "\n"
    (inputs / "lost.jsonl").write_text(lost + rows)
    held = {"eval_path": str(inputs / "lost.jsonl"), "bad_rows": "drop"}
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, **held))
    config = TrainConfig(made, options=Options(samples=SamplesConfig(every=2, count=9)))
    found = check_inputs(config, mesh)
    shown = [found.tokenizer.decode(prompt.token_ids) for prompt in read_prompts(config, found)]
    assert [int(text.split("number ")[1].split("?")[0]) for text in shown] == [0, 3, 6, 9]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_images(inputs, compiled, tmp_path):
    command = Command(inputs, compiled)
    options = (
        *(
            "--steps",
            "9",
            "--checkpoint.every",
            "3",
            "--data.sequence-length",
            "160",
            "--data.sequences-per-batch",
            "2",
        ),
        *("--data.vision.max-pixels", "4096", "--data.vision.min-pixels", "1024", "--data.vision.video-max-pixels"),
        *("8192", "--data.vision.patches-per-sequence", "256"),
    )
    processes = command.start(tmp_path / "killed", *options)
    wait_for_save(processes, tmp_path / "killed", 3)
    kill(processes)
    assert "resumed after step" in command.run(tmp_path / "killed", *options)
    command.run(tmp_path / "whole", *options)
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
