"""Distillation with images: a store that tells images of one size apart, and answers to prompts that show some."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.processing import Tokenizer
from tests.train.data.pictures import drawn
from tests.train.launching import Command, kill, timeless, wait_for_save
from tests.train.test_on_policy import exported, stop_after
from tests.train.vision_inputs import recipe, write_inputs
from train.config import (
    CheckpointConfig,
    Distillation,
    LoraConfig,
    MeshConfig,
    MtpDistillConfig,
    OptimConfig,
    RolloutConfig,
    TeacherConfig,
    TrainConfig,
)
from train.data.pipeline import make_batches
from train.data.vision import vision_reader
from train.observe.metrics import METRICS, read_entries
from train.run import run
from train.signals.signal import STATES
from train.signals.store import Store
from train.signals.teaching import write_store

ROWS = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A checkpoint that sees images, another one to teach it, and questions of equal words about different images."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    seeing = ModelConfig.from_hf(folder / "base")
    create_checkpoint(seeing, folder / "teacher", seed=1, dtype="float32", tokenizer_from=folder / "tokenizer")
    rows = []
    for number in range(ROWS):
        drawn(64, 64, seed=number).save(folder / f"twin_{number}.png")
        content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        shown = [f"twin_{number}.png"]
        if number % 6 == 0:
            content, shown = [{"type": "text", "text": f"What is {number}?"}], []
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "It is red."}]
        rows.append({"messages": messages, "images": shown})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make_config(inputs, *, vision=True, **teacher):
    """Returns a run of one epoch that is taught by the other checkpoint."""
    heard = {"path": str(inputs / "teacher"), "dtype": "float32", "k": 9} | teacher
    mtp = MtpDistillConfig(target="teacher", weight=0.3)
    made = recipe(inputs, objective=Distillation(TeacherConfig(**heard), mtp=mtp), lora=LoraConfig(rank=2), steps=99)
    data = dataclasses.replace(made.data, epochs=1, eval_fraction=0.2)
    data = data if vision else dataclasses.replace(data, vision=None, bad_rows="drop", max_lost=1.0)
    return TrainConfig(dataclasses.replace(made, data=data))


@pytest.fixture(scope="module")
def store(inputs, tmp_path_factory):
    """The folder of a store; nobody may change it."""
    folder = tmp_path_factory.mktemp("stores") / "hidden"
    write_store(make_config(inputs, store=str(folder)))
    return folder


def train(config, workdir):
    run(config, workdir)
    return timeless(workdir)


@pytest.mark.parametrize("signal", ["hidden", pytest.param("topk", marks=pytest.mark.slow)])
def test_a_stored_signal_trains_as_a_live_one(inputs, store, tmp_path, signal):
    if signal == "topk":
        store = tmp_path / "store"
        write_store(make_config(inputs, store=str(store), signal=signal))
    live = train(make_config(inputs, signal=signal), tmp_path / "live")
    stored = train(make_config(inputs, store=str(store), signal=signal), tmp_path / "stored")
    assert len(live) == 3 and "eval_divergence" in live[-1]
    for one, other in zip(stored, live, strict=True):
        names = {name for name in one if not name.endswith(("seconds", "per_second"))}
        assert {name: one[name] for name in names} == {name: other[name] for name in names}


def test_each_image_has_a_document_of_its_own(store):
    assert Store.open(store).totals["documents"] == ROWS


def open_batches(inputs, store, **changes):
    """Makes the batches of a run from a store, as the run does."""
    config = make_config(inputs, store=str(store))
    data, folder = dataclasses.replace(config.recipe.data, **changes), inputs / "base"
    tokenizer, opened = Tokenizer.from_pretrained(folder), Store.open(store)
    opened.check(config.recipe.objective.teacher, data, tokenizer, vocabulary=512)
    reader = vision_reader(data.vision, folder, ModelConfig.from_hf(folder), tokenizer)
    return make_batches(data, tokenizer, signals=opened, vision=reader)


@pytest.mark.slow
def test_a_mesh_writes_the_same_signal(inputs, store, tmp_path):
    write_store(make_config(inputs, store=str(tmp_path / "store")).replace(mesh=MeshConfig(data=2)))
    for got, want in zip(*(open_batches(inputs, each) for each in (tmp_path / "store", store)), strict=True):
        assert np.any(want[STATES])
        # float32 sums in another order.
        np.testing.assert_allclose(got[STATES], want[STATES], atol=1e-5)


def test_an_image_that_gave_way_to_another_of_its_size_is_named(inputs, store, tmp_path):
    for file in inputs.glob("*.png"):
        shutil.copy(file, tmp_path)
    moved = shutil.copy(inputs / "train.jsonl", tmp_path)
    assert len([*open_batches(inputs, store, path=str(moved))]) == 3
    for file in tmp_path.glob("*.png"):
        drawn(64, 64, seed=99).save(file)
    told = (
        r"train\.jsonl line \d+: a document of \d+ tokens and an image or a video is not in the store .* for other "
        r"documents, or before the file of it changed; write"
    )
    with pytest.raises(ValueError, match=told):
        list(open_batches(inputs, store, path=str(moved)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_pixels": 2048}, r"data\.vision\.max_pixels is 4096 there and 2048 here; give the former"),
        ({"patches_per_sequence": 512}, r"data\.vision\.patches_per_sequence is 256 there and 512 here"),
    ],
)
def test_images_of_another_size_are_refused_by_name(inputs, store, changes, message):
    vision = dataclasses.replace(make_config(inputs).recipe.data.vision, **changes)
    with pytest.raises(ValueError, match=message):
        open_batches(inputs, store, vision=vision)


def test_a_store_of_text_and_one_of_images_are_not_taken_for_each_other(inputs, store, tmp_path):
    with pytest.raises(ValueError, match=r"it was made with data\.vision, which the run lacks; give it"):
        run(make_config(inputs, vision=False, store=str(store)), tmp_path / "run")
    write_store(make_config(inputs, vision=False, store=str(tmp_path / "text")))
    assert "vision" not in json.loads((tmp_path / "text" / "header.json").read_text())
    with pytest.raises(ValueError, match=r"it was made without data\.vision, so that it knows text alone"):
        run(make_config(inputs, store=str(tmp_path / "text")), tmp_path / "run")


ROLLOUTS = RolloutConfig(
    fraction=0.5, answers=2, max_prompt_tokens=60, max_new_tokens=8, slots=4, refresh=4, eval_prompts=3
)
CONFIG = """
from dataclasses import replace
from configs.tiny_distill import config as tiny
from train.config import RolloutConfig

def config():
    return tiny().replace(objective=replace(tiny().recipe.objective, rollouts={rollouts!r}))
"""


def on_policy(inputs, **teacher):
    """Returns a run of six steps on the student's own answers."""
    made = make_config(inputs, **teacher)
    objective = dataclasses.replace(made.recipe.objective, rollouts=ROLLOUTS, mtp=MtpDistillConfig(weight=0.0))
    return made.replace(
        data=dataclasses.replace(made.recipe.data, epochs=None),
        model=dataclasses.replace(made.recipe.model, dtype="float32"),
        optim=OptimConfig(learning_rate=5e-3, warmup=0.0, schedule="constant"),
        objective=objective,
        steps=6,
        checkpoint=CheckpointConfig(every=2, keep=9),
    )


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """The directory of an on-policy run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("on_policy") / "run"
    run(on_policy(inputs), workdir)
    return workdir


def test_the_engine_the_step_and_the_teacher_see_the_images_of_a_prompt(inputs, whole, tmp_path):
    rows = read_entries(whole / METRICS)
    # The engine and the step compute the same log-probabilities as long as the weights are the same.
    assert all(rows[step]["sampler_gap"] < 1e-5 < rows[step + 1]["sampler_gap"] for step in (0, 4))
    assert rows[-1]["eval_rollout_tokens"] > 0 < rows[0]["divergence"]
    # New adapters change nothing, so that a student that is its own teacher agrees with it about its answers.
    own = on_policy(inputs, path="", own_base=True).replace(steps=1)
    run(own, tmp_path / "own")
    [first] = read_entries(tmp_path / "own" / METRICS)
    assert abs(first["divergence"]) < 1e-8 and first["agreement"] == 1


def test_an_on_policy_run_that_resumes_equals_the_whole_one_bit_for_bit(whole, inputs, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    stop_after(2, workdir)
    run(on_policy(inputs), workdir)
    assert timeless(workdir) == timeless(whole)
    assert exported(workdir) == exported(whole) != {}


@pytest.mark.slow
def test_killed_processes_of_an_on_policy_run_go_on_as_if_nothing_had_happened(inputs, compiled, tmp_path):
    config = tmp_path / "on_policy.py"
    config.write_text(CONFIG.format(rollouts=ROLLOUTS))
    command = Command(inputs, compiled)
    where = {"config": str(config), "code": "from train.distill import main; main()", "processes": 2}
    options = (
        *("--teacher.path", str(inputs / "teacher"), "--teacher.dtype", "float32", "--mesh.data", "2"),
        *("--data.sequence-length", "160", "--data.sequences-per-batch", "4"),
        *("--data.vision.max-pixels", "4096", "--data.vision.min-pixels", "1024"),
        *("--data.vision.video-max-pixels", "8192", "--data.vision.patches-per-sequence", "256"),
        *("--steps", "12", "--checkpoint.every", "2", "--checkpoint.keep", "9"),
    )
    command.run(tmp_path / "whole", *options, **where)
    running = command.start(tmp_path / "killed", *options, **where)
    wait_for_save(running, tmp_path / "killed", 2)
    kill(running)
    assert "resumed after step" in command.run(tmp_path / "killed", *options, **where)
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
    assert exported(tmp_path / "killed") == exported(tmp_path / "whole")
