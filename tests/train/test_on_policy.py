"""On-policy runs of the command: answers of the student, taught by a teacher, and resumed without a difference."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

import qwen35_jax
from configs.tiny_distill import config as tiny
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.requests import seed_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing.tokenizer import Tokenizer
from tests.train.conftest import small_config
from tests.train.launching import finish, kill, timeless, wait_for_save
from train.config import (
    CheckpointConfig,
    DataConfig,
    LoraConfig,
    ModelSource,
    OptimConfig,
    RolloutConfig,
    TeacherConfig,
)
from train.observe.metrics import METRICS, read_entries
from train.run import run

STEPS, REFRESH = 6, 4
ROLLOUTS = RolloutConfig(fraction=0.5, answers=2, max_prompt_tokens=40, max_new_tokens=8, slots=4, refresh=REFRESH)
CONFIG = """
from tests.train.test_on_policy import make_config

def config():
    return make_config({inputs!r}, {teacher!r})
"""


def make_config(inputs, teacher):
    recipe = tiny().recipe
    objective = dataclasses.replace(
        recipe.objective, teacher=TeacherConfig(path=str(teacher), dtype="float32"), rollouts=ROLLOUTS
    )
    return tiny().replace(
        model=ModelSource(f"{inputs}/base", dtype="float32"),
        data=DataConfig(f"{inputs}/train.jsonl", sequence_length=96, sequences_per_batch=4, num_threads=1),
        steps=STEPS,
        optim=OptimConfig(learning_rate=5e-3, warmup=1),
        lora=LoraConfig(rank=4),
        objective=objective,
        checkpoint=CheckpointConfig(every=2, keep=9),
    )


@pytest.fixture(scope="module")
def teacher(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "model"
    create_checkpoint(small_config(), folder, seed=1, dtype="float32", tokenizer_from=inputs / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def whole(inputs, teacher, tmp_path_factory):
    """The directory of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("on_policy") / "run"
    run(make_config(inputs, teacher), workdir)
    return workdir


def stop_after(step, workdir):
    """Leaves of a whole run what a kill after a checkpoint leaves."""
    for path in (workdir / "checkpoints").iterdir():
        if path.name.isdecimal() and int(path.name) > step:
            shutil.rmtree(path)
    shutil.rmtree(workdir / "export")


def exported(workdir):
    return {path.name: path.read_bytes() for path in (workdir / "export").rglob("*.safetensors")}


def test_the_metrics_tell_of_the_rollouts(whole):
    rows = read_entries(whole / METRICS)
    assert len(rows) == STEPS
    for row in rows:
        shares = [row[f"rollout_{end}"] for end in ("truncated", "end_of_turn", "end_of_text")]
        assert math.isclose(sum(shares), 1) and 0 < row["rollout_distinct"] <= 1
        assert 1 <= row["rollout_length_mean"] <= row["rollout_length_max"] <= 8
        assert row["divergence"] > 0 and row["tokens"] > 0
        assert row["teacher_seconds"] > 0 < row["student_seconds"]
    assert [row["rollout_staleness"] for row in rows] == [0, 1, 2, 3, 0, 1]
    assert [row["rollout_seconds"] > 0 for row in rows] == [True, False, False, False, True, False]
    # The engine and the step compute the same log-probabilities as long as the weights are the same.
    assert all(rows[step]["sampler_gap"] < 1e-3 < rows[step + 1]["sampler_gap"] for step in (0, 4))


@pytest.fixture(scope="module")
def validated(inputs, teacher, tmp_path_factory):
    """The directory of the same run, which also answers three prompts at every validation."""
    workdir, settings = tmp_path_factory.mktemp("on_policy") / "validated", make_config(inputs, teacher)
    data = dataclasses.replace(settings.recipe.data, eval_path=f"{inputs}/train.jsonl", eval_batches=1)
    rollouts = dataclasses.replace(ROLLOUTS, eval_prompts=3)
    objective = dataclasses.replace(settings.recipe.objective, rollouts=rollouts)
    best = CheckpointConfig(every=3, keep=9, best_by="eval_rollout_kl_reverse")
    run(settings.replace(data=data, objective=objective, checkpoint=best), workdir)
    return workdir


def test_validation_changes_no_token_that_trains(whole, validated):
    rows = [{name: row[name] for name in row if not name.startswith("eval")} for row in timeless(validated)]
    assert rows == timeless(whole)


def test_validation_measures_fresh_answers_of_the_student_by_its_teacher(inputs, teacher, validated):
    """Samples with the exported weights, and computes both divergences from the logits of both models."""
    last = read_entries(validated / METRICS)[-1]
    student, master = (
        qwen35_jax.load(inputs / "base", "float32", adapter=validated / "export"),
        qwen35_jax.load(teacher, "float32"),
    )
    tokenizer = Tokenizer.from_pretrained(inputs / "base")
    rows = [json.loads(line) for line in (inputs / "train.jsonl").read_text().splitlines()]
    prompts = [tokenizer.encode_chat(row["messages"][:-1]) for row in rows]
    chosen = [(place, ids) for place, ids in enumerate(prompts) if len(ids) <= 40][:3]
    done = Engine(student, tokenizer, slots=4).generate(
        [ids for _, ids in chosen],
        sampling=SamplingParams(temperature=1.0),
        max_new_tokens=8,
        seed=[seed_of(0, f"validation/{place}/0") for place, _ in chosen],
    )
    found = {"kl_forward": [], "kl_reverse": []}
    quarters = {number: [] for number in range(4)}
    for (_, ids), completion in zip(chosen, done, strict=True):
        whole = np.array([[*ids, *completion.token_ids]])
        log_s, log_t = (
            np.asarray(jax.nn.log_softmax(model.logits(whole)), np.float64)[0, len(ids) - 1 : -1]
            for model in (student, master)
        )
        found["kl_forward"].append(np.sum(np.exp(log_t) * (log_t - log_s), -1))
        found["kl_reverse"].append(np.sum(np.exp(log_s) * (log_s - log_t), -1))
        for place, value in enumerate(found["kl_reverse"][-1]):
            quarters[4 * place // len(completion.token_ids)].append(value)
    lengths = [len(completion.token_ids) for completion in done]
    assert last["eval_rollout_tokens"] == sum(lengths)
    assert last["eval_rollout_length_mean"] == pytest.approx(np.mean(lengths))
    for name, values in found.items():
        # float32 sums in another order.
        assert last[f"eval_rollout_{name}"] == pytest.approx(np.concatenate(values).mean(), rel=1e-4), name
    for number, values in quarters.items():
        assert last[f"eval_rollout_kl_reverse_quarter_{number + 1}"] == pytest.approx(np.mean(values), rel=1e-3)
    assert last["eval_rollout_kl_reverse"] != pytest.approx(last["eval_kl_reverse"], rel=1e-2)
    outcome = json.loads((validated / "config.json").read_text())["outcome"]
    assert "eval_rollout_kl_reverse" in outcome["best"]


@pytest.mark.parametrize("step", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_that_resumes_equals_the_whole_one_bit_for_bit(whole, inputs, teacher, tmp_path, step):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    stop_after(step, workdir)
    run(make_config(inputs, teacher), workdir)
    assert timeless(workdir) == timeless(whole)
    assert exported(workdir) == exported(whole) != {}
    saved = [json.loads(next((folder / "checkpoints" / "6").rglob("metadata")).read_text()) for folder in
             (workdir, whole)]  # fmt: skip
    assert saved[0] == saved[1] and len(saved[0]["rollouts"]) == 2 and saved[0]["batches"] == STEPS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": dataclasses.replace(tiny().layout.mesh, context=2)}, "rollouts need a mesh that does not split"),
        (
            {"data": DataConfig("x.jsonl", sequence_length=47)},
            r"documents of up to 48 tokens, but data.sequence_length",
        ),
        ({"data": DataConfig("x.jsonl", sequence_length=96, epochs=1)}, r"data.epochs=1 counts documents"),
    ],
)
def test_settings_that_do_not_fit_are_named_when_they_are_built(inputs, teacher, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(inputs, teacher).replace(**changes)


@pytest.mark.parametrize("prompts", [0, 1])
def test_the_best_step_is_judged_by_answers_only_where_there_are_some(inputs, teacher, prompts):
    settings = make_config(inputs, teacher)
    objective = dataclasses.replace(
        settings.recipe.objective, rollouts=dataclasses.replace(ROLLOUTS, eval_prompts=prompts)
    )
    changes = {
        "objective": objective,
        "data": dataclasses.replace(settings.recipe.data, eval_path="x.jsonl"),
        "checkpoint": CheckpointConfig(best_by="eval_rollout_kl_reverse"),
    }
    if prompts:
        assert settings.replace(**changes).options.checkpoint.best_by == "eval_rollout_kl_reverse"
        return
    with pytest.raises(ValueError, match="best_by='eval_rollout_kl_reverse' is no figure of this run"):
        settings.replace(**changes)


def test_a_model_with_too_few_positions_is_refused_before_it_is_loaded(inputs, teacher, tmp_path):
    settings = make_config(inputs, teacher)
    longer = dataclasses.replace(ROLLOUTS, max_new_tokens=10**6)
    objective = dataclasses.replace(settings.recipe.objective, rollouts=longer)
    data = dataclasses.replace(settings.recipe.data, sequence_length=2 * 10**6)
    with pytest.raises(ValueError, match=r"max_new_tokens=1000000 pass the model's \d+ positions"):
        run(settings.replace(objective=objective, data=data), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_equals_uninterrupted(command, inputs, teacher, tmp_path, processes):
    config = tmp_path / "on_policy.py"
    config.write_text(CONFIG.format(inputs=str(inputs), teacher=str(teacher)))
    code = "from train.distill import main; main()"
    where = {"config": str(config), "code": code, "processes": processes}
    mesh = ("--mesh.data", str(processes), "--steps", "12")
    finish(command.start(tmp_path / "whole", *mesh, **where))
    running = command.start(tmp_path / "killed", *mesh, **where)
    wait_for_save(running, tmp_path / "killed", 2)
    kill(running)
    assert "resumed after step" in finish(command.start(tmp_path / "killed", *mesh, **where))
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
    assert exported(tmp_path / "killed") == exported(tmp_path / "whole")
