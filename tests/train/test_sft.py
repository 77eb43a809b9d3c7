"""The command: killed and resumed runs equal whole ones, a mesh equals one device, wrong input is one line."""

import dataclasses
import json
import logging
import os
import random
import shutil

import numpy as np
import pytest

from configs.tiny_sft import config as tiny_config
from qwen35_jax.config import MTPConfig
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.safetensors import read_checkpoint
from tests.train.conftest import small_config
from tests.train.launching import LORA, TINY, finish, kill, saved_steps, timeless, wait_for_save, wait_for_step
from train.observe.metrics import METRICS, read_entries
from train.sft import main


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(command, whole_run, tmp_path):
    workdir = tmp_path / "run"
    # Pytest shows the steps where the test fails.
    kills = sorted(random.sample(range(4, 9), 2))
    print(f"killed after steps {kills}")
    for step in kills:
        processes = command.start(workdir, *LORA)
        wait_for_step(processes, workdir, step)
        wait_for_save(processes, workdir, 3)
        kill(processes)
    last = saved_steps(workdir)[-1]
    assert f"resumed after step {last}" in command.run(workdir, *LORA)
    want = timeless(whole_run[0])
    assert len(want) == 9 and want[-1]["mtp_loss"] > 0
    assert timeless(workdir) == want
    for name in ("adapter_model.safetensors", "mtp/adapter_model.safetensors"):
        ours, theirs = (folder / "export" / name for folder in (workdir, whole_run[0]))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_checkpoint_cut_short_is_skipped(command, whole_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run[0], workdir)
    files = [path for path in (workdir / "checkpoints" / "9").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    out = command.run(workdir, *LORA)
    assert "WARNING checkpoint" in out and "resumed after step 6" in out
    assert timeless(workdir) == timeless(whole_run[0])


def test_a_run_directory_holds_what_is_promised(whole_run):
    workdir, out = whole_run
    names = {path.name for path in workdir.iterdir()}
    assert names == {"config.json", METRICS, "tensorboard", "checkpoints", "export", "plots", ".checkpoint-was-written"}
    config = json.loads((workdir / "config.json").read_text())
    assert config["recipe"]["lora"]["rank"] == 4 and config["recipe"]["steps"] == 9
    row = read_entries(workdir / METRICS)[0]
    assert {"step", "loss", "mtp_loss", "tokens", "grad_norm", "learning_rate", "tokens_per_second"} <= row.keys()
    assert {path.name for path in (workdir / "export").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "mtp", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"),
    }
    assert (workdir / "plots" / "losses.png").is_file()
    assert "mtp.layers.0.self_attn.q_proj" in out and "parameters train" in out and "packing_efficiency" in out


def test_adapters_are_all_that_a_checkpoint_holds(whole_run):
    metadata = json.loads((whole_run[0] / "checkpoints" / "9" / "state" / "_METADATA").read_text())
    names = [key.strip("()',") for key in metadata["tree_metadata"]]
    params = [name for name in names if name.startswith("params.")]
    assert params and all(".lora_a" in name or ".lora_b" in name for name in params)
    moments = [name for name in names if ".mu." in name or ".nu." in name]
    assert len(moments) == 2 * len(params)


FULL = """
from configs.tiny_sft import config as tiny

def config():
    return tiny().replace(lora=None, export={export})
"""


@pytest.mark.slow
def test_full_fine_tuning_on_a_mesh_equals_one_device(command, inputs, tmp_path):
    options = ("--steps", "3", "--data.sequence-length", "64", "--optim.warmup-steps", "1")
    processes = {}
    for name, devices, mesh in (("one", 1, ()), ("four", 4, ("--mesh.fsdp", "2", "--mesh.tensor", "2"))):
        config = tmp_path / f"{name}.py"
        config.write_text(FULL.format(export=devices == 1))
        processes[name] = command.start(tmp_path / name, *options, *mesh, config=str(config), devices=devices)
    for each in processes.values():
        finish(each)
    for one, four in zip(timeless(tmp_path / "one"), timeless(tmp_path / "four"), strict=True):
        for name, value in one.items():
            # float32 sums in another order; Adam divides small gradients by small moments.
            np.testing.assert_allclose(four[name], value, rtol=1e-3, err_msg=name)
    exported, source = read_checkpoint(tmp_path / "one" / "export"), read_checkpoint(inputs / "base")
    assert exported.keys() == source.keys()
    changed = {name for name in source if content(exported[name]) != content(source[name])}
    assert "mtp.fc.weight" in changed and "model.language_model.embed_tokens.weight" in changed
    assert not any("visual" in name for name in changed)


def content(stored):
    return stored.read((slice(None),) * len(stored.shape), np.float32).tobytes()


@pytest.fixture(autouse=True)
def restored_logging():
    """Takes back what the command sets up, when it runs in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def copy_base(inputs, folder, *, without=(), **changes):
    """Copies the checkpoint without some files, with other contents for others (name with _ for .)."""
    folder.mkdir()
    for path in (inputs / "base").iterdir():
        if path.name not in without:
            (folder / path.name).write_bytes(path.read_bytes())
    for name, change in changes.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(change(path.read_bytes()))
    return folder


def other_base(inputs, folder, **changes):
    """Writes a checkpoint of another text configuration with the same tokenizer."""
    config = small_config()
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, **changes))
    return create_checkpoint(config, folder, tokenizer_from=inputs / "base")


def rows_with(inputs, tmp_path, line, number=17):
    """Writes the training data with another line in one place."""
    lines = (inputs / "train.jsonl").read_text().splitlines()
    lines[number - 1] = line
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "data.jsonl"


def conversation(*roles):
    return json.dumps({"messages": [{"role": role, "content": "hello " * 9} for role in roles]})


# Each case: the options to add, and what the line must name. A later option replaces an earlier one.
WRONG = {
    "no such run file": (lambda i, t: ["absent.py"], "absent.py"),
    "unknown override": (lambda i, t: [TINY, "--modle.path", "x"], "--modle.path"),
    "override of a wrong type": (lambda i, t: [TINY, "--steps", "many"], "--steps"),
    "no such choice": (lambda i, t: [TINY, "--optim.schedule", "square"], "square"),
    "no model": (lambda i, t: [TINY, "--model.path", t / "absent"], "absent"),
    "model without weights": (
        lambda i, t: [TINY, "--model.path", copy_base(i, t / "m", without=["model.safetensors"])],
        "model.safetensors",
    ),
    "weights cut short": (
        lambda i, t: [TINY, "--model.path", copy_base(i, t / "m", model__safetensors=lambda x: x[:-9])],
        "cut short",
    ),
    "no tokenizer": (
        lambda i, t: [TINY, "--model.path", copy_base(i, t / "m", without=["tokenizer.json"])],
        "tokenizer.json",
    ),
    "config of another model": (
        lambda i, t: [TINY, "--model.path", copy_base(i, t / "m", config__json=lambda x: x.replace(b"512", b"640"))],
        "has shape [512, 32]",
    ),
    "vocabulary too small": (
        lambda i, t: [TINY, "--model.path", other_base(i, t / "m", vocab_size=270)],
        "vocab_size is 270",
    ),
    "no MTP head": (
        lambda i, t: [TINY, "--model.path", other_base(i, t / "m", mtp=MTPConfig(0))],
        "--mtp.weight 0.1",
    ),
    "no data": (lambda i, t: [TINY, "--data.path", t / "absent.jsonl"], "absent.jsonl"),
    "empty data": (lambda i, t: [TINY, "--data.path", t / "empty.jsonl"], "empty"),
    "bad JSON": (lambda i, t: [TINY, "--data.path", rows_with(i, t, '{"messages": [')], "line 17"),
    "wrong order of roles": (
        lambda i, t: [TINY, "--data.path", rows_with(i, t, conversation("assistant", "system"))],
        "line 17",
    ),
    "a row that is too long": (
        lambda i, t: [TINY, "--data.sequence-length", "24", "--data.long-rows", "error"],
        "--data.sequence-length 24",
    ),
    "warmup that is neither steps nor a fraction": (lambda i, t: [TINY, "--optim.warmup", "1.5"], "--optim.warmup 1.5"),
    "rows that cannot be cut": (lambda i, t: [TINY, "--accumulation", "3"], "--data.sequences-per-batch 8"),
    "more devices than there are": (lambda i, t: [TINY, "--mesh.tensor", "64"], "64 devices"),
    "unknown LoRA target": (lambda i, t: [TINY, "--lora.targets", "attention", "vision"], "vision"),
    "LoRA target with a slip": (lambda i, t: [TINY, "--lora.targets", "q_porj"], "did you mean 'q_proj'"),
    "excluded module that is not there": (
        lambda i, t: [TINY, "--lora.exclude", "lm_head"],
        "lora.exclude has 'lm_head'",
    ),
    "MTP adapters without the MTP loss": (lambda i, t: [TINY, "--mtp.weight", "0"], "--mtp.weight 0 never trains it"),
    "whole weights beside adapters": (lambda i, t: [TINY, "--train", "mtp"], "--tune full"),
    "weights that do not exist": (lambda i, t: [TINY, "--tune", "full", "--train", "mpt.*"], "train has 'mpt.*'"),
    "weights that no loss reaches": (
        lambda i, t: [TINY, "--tune", "full", "--train", "mlp", "--mtp.gradient", "head_only"],
        "reaches nothing that train chooses",
    ),
    "no adapter to start from": (lambda i, t: [TINY, "--model.adapter", t / "absent"], "absent"),
    "branch without a step": (lambda i, t: [TINY, "--branch-from", t / "foreign"], "give RUN@STEP"),
    "branch from nothing": (lambda i, t: [TINY, "--branch-from", f"{t / 'absent'}@3"], "there is no directory"),
    "branch from no run": (lambda i, t: [TINY, "--branch-from", f"{t / 'foreign'}@3"], "config.json cannot be read"),
    "a mesh that does not divide the tokens": (
        lambda i, t: [TINY, "--mesh.context", "8", "--data.sequence-length", "72"],
        "tokens in a sequence=72",
    ),
    "steps to profile in the wrong order": (lambda i, t: [TINY, "--profile", "9:3"], "--profile 9:3"),
    "evaluations without anything to evaluate": (lambda i, t: [TINY, "--evaluate-every", "5"], "--evaluate-every 5"),
    "unknown policy": (lambda i, t: [TINY, "--health.policy", "hope"], "hope"),
    "limit that stops every step": (lambda i, t: [TINY, "--health.loss-factor", "0.5"], "--health.loss-factor 0.5"),
    "moments of an unknown dtype": (lambda i, t: [TINY, "--optim.first-moment-dtype", "int8"], "int8"),
    "processes without a coordinator": (
        lambda i, t: [TINY, "--processes.count", "2", "--processes.index", "0"],
        "processes.coordinator",
    ),
    "an address of another kind as a workdir": (
        lambda i, t: [TINY, "--workdir", "s3://bucket/run"],
        "s3:// are not supported; give gs://BUCKET/NAME",
    ),
    "LoRA rank 0": (lambda i, t: [TINY, "--lora.rank", "0"], "--lora.rank 0 must"),
    "MTP gradient that reaches nothing": (
        lambda i, t: [TINY, "--lora.targets", "mlp", "--mtp.gradient", "head_only"],
        "head_only",
    ),
    "workdir below a file": (lambda i, t: [TINY, "--workdir", t / "empty.jsonl" / "run"], "cannot be written"),
    "workdir with an export only": (lambda i, t: [TINY, "--workdir", t / "exported"], "checkpoints are gone"),
    "workdir with other files": (lambda i, t: [TINY, "--workdir", t / "foreign"], "holds no training run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_writes_nothing(inputs, tmp_path, capsys, case):
    make, named = WRONG[case]
    (tmp_path / "empty.jsonl").write_text("")
    for folder in ("exported/export", "exported/checkpoints", "foreign"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "foreign" / METRICS).write_text('{"step": 5}')
    config, *options = map(str, make(inputs, tmp_path))
    files = ["--model.path", inputs / "base", "--data.path", inputs / "train.jsonl", "--workdir", tmp_path / "run"]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main([config, *map(str, files), *options])
    assert stop.value.code not in (0, None)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error
    assert sorted(tmp_path.rglob("*")) == before


OTHER_OBJECTIVE = """
import dataclasses
from configs.tiny_sft import config as tiny

@dataclasses.dataclass(frozen=True)
class Distillation:
    pass

def config():
    return tiny().replace(objective=Distillation())
"""


def test_a_run_file_with_another_objective_is_refused_by_name(tmp_path, capsys):
    (tmp_path / "other.py").write_text(OTHER_OBJECTIVE)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "other.py")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "is Distillation, but python -m train.sft needs Supervised" in error


def test_resuming_with_other_settings_is_refused(whole_run, inputs, capsys):
    workdir, _ = whole_run
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    files = ("--model.path", inputs / "base", "--data.path", inputs / "train.jsonl", "--workdir", workdir)
    with pytest.raises(SystemExit):
        main([TINY, *map(str, files), *LORA, "--optim.learning-rate", "0.5", "--seed", "4"])
    error = capsys.readouterr().err
    assert (
        f"--optim.learning-rate was {tiny_config().recipe.optim.learning_rate}, now 0.5; --seed was 0, now 4" in error
    )
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


SCORED = """
from configs import tiny_sft
from configs.scoring import scored
from eval.config import EvalConfig

def config():
    questions = EvalConfig(tasks=("qa",), data_dir={data_dir!r}, max_new_tokens=16, slots=2, cache_tokens=512)
    return scored(tiny_sft.config(), questions, every=4)
"""


@pytest.mark.slow
def test_a_run_scores_itself_and_traces_chosen_steps(command, whole_run, tmp_path):
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa" / "test.jsonl").write_text('{"question": "What is 1 plus 1", "answer": "2"}\n')
    (tmp_path / "scored.py").write_text(SCORED.format(data_dir=str(tmp_path)))
    workdir = tmp_path / "run"
    command.run(workdir, *LORA, "--profile", "4:5", config=str(tmp_path / "scored.py"))
    rows = timeless(workdir)
    assert [row["step"] for row in rows if "eval_qa_accuracy" in row] == [4, 8, 9]
    assert [row["step"] for row in rows if "eval_qa_cut" in row] == [4, 8, 9]
    figures = {"eval_qa_accuracy", "eval_qa_cut"}
    trained = [{name: value for name, value in row.items() if name not in figures} for row in rows]
    assert trained == timeless(whole_run[0])
    evaluate = json.loads((workdir / "config.json").read_text())["options"]["evaluate"]
    assert evaluate.startswith("configs.scoring.scored.")
    assert list((workdir / "profile").rglob("*.xplane.pb"))
