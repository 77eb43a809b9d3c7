"""Flags are short, and every flag that a user may have in a script goes on working."""

import dataclasses

import pytest

from qwen35_jax.command import parse
from train.config import (
    DataConfig,
    Distillation,
    LoraConfig,
    ModelSource,
    Recipe,
    RolloutConfig,
    Source,
    Supervised,
    TrainConfig,
    VisionDataConfig,
)

SOURCES = (Source("a.jsonl"), Source("b.jsonl", 2.0))
DEFAULT = TrainConfig(Recipe(ModelSource("base"), DataConfig(sources=SOURCES), steps=10, lora=LoraConfig()))

# Every flag from before the settings were split into recipe, layout and options: a value for it, and its place today.
OLD_FLAGS = {
    "--accumulation": ("2", "recipe.accumulation", 2),
    "--checkpoint.every": ("7", "options.checkpoint.every", 7),
    "--checkpoint.keep": ("3", "options.checkpoint.keep", 3),
    "--data.bad-rows": ("drop", "recipe.data.bad_rows", "drop"),
    "--data.epochs": ("2", "recipe.data.epochs", 2),
    "--data.hub-files": ("*a*", "recipe.data.hub_files", "*a*"),
    "--data.long-rows": ("error", "recipe.data.long_rows", "error"),
    "--data.no-train-on-thinking": (None, "recipe.data.train_on_thinking", False),
    "--data.num-threads": ("3", "recipe.data.num_threads", 3),
    "--data.open-rows": ("5", "recipe.data.open_sequences", 5),
    "--data.path": ("x.jsonl", "recipe.data.path", "x.jsonl"),
    "--data.rows-per-batch": ("16", "recipe.data.sequences_per_batch", 16),
    "--data.seed": ("4", "recipe.data.seed", 4),
    "--data.sequence-length": ("64", "recipe.data.sequence_length", 64),
    "--data.shards": ("2", "recipe.data.shards", 2),
    "--data.sources.0.hub-files": ("*b*", "recipe.data.sources.0.hub_files", "*b*"),
    "--data.sources.0.path": ("c.jsonl", "recipe.data.sources.0.path", "c.jsonl"),
    "--data.sources.1.weight": ("3", "recipe.data.sources.1.weight", 3.0),
    "--data.train-on": ("last", "recipe.data.train_on", "last"),
    "--data.train-on-thinking": (None, "recipe.data.train_on_thinking", True),
    "--evaluate-every": ("None", "options.evaluate_every", None),
    "--export": (None, "options.export", True),
    "--health.grad-norm-factor": ("4", "recipe.health.grad_norm_factor", 4.0),
    "--health.loss-factor": ("4", "recipe.health.loss_factor", 4.0),
    "--health.max-grad-norm": ("4", "recipe.health.max_grad_norm", 4.0),
    "--health.max-skips": ("4", "recipe.health.max_skips", 4),
    "--health.policy": ("skip", "recipe.health.policy", "skip"),
    "--lora.alpha": ("8", "recipe.lora.alpha", 8.0),
    "--lora.dropout": ("0.5", "recipe.lora.dropout", 0.5),
    "--lora.no-rank-stabilized": (None, "recipe.lora.rank_stabilized", False),
    "--lora.rank": ("8", "recipe.lora.rank", 8),
    "--lora.rank-stabilized": (None, "recipe.lora.rank_stabilized", True),
    "--lora.targets": ("mlp", "recipe.lora.targets", ("mlp",)),
    "--loss-chunk": ("32", "layout.loss_chunk", 32),
    "--mesh.context": ("2", "layout.mesh.context", 2),
    "--mesh.data": ("2", "layout.mesh.data", 2),
    "--mesh.fsdp": ("2", "layout.mesh.fsdp", 2),
    "--mesh.tensor": ("2", "layout.mesh.tensor", 2),
    "--model.dtype": ("float32", "recipe.model.dtype", "float32"),
    "--model.param-dtype": ("float32", "recipe.model.param_dtype", "float32"),
    "--model.path": ("other", "recipe.model.path", "other"),
    "--model.remat": ("none", "layout.remat", "none"),
    "--mtp.gradient": ("joint", "recipe.objective.mtp.gradient", "joint"),
    "--mtp.num-steps": ("2", "recipe.objective.mtp.num_steps", 2),
    "--mtp.weight": ("0.5", "recipe.objective.mtp.weight", 0.5),
    "--no-export": (None, "options.export", False),
    "--optim.b1": ("0.5", "recipe.optim.b1", 0.5),
    "--optim.b2": ("0.5", "recipe.optim.b2", 0.5),
    "--optim.clip-norm": ("None", "recipe.optim.clip_norm", None),
    "--optim.eps": ("0.5", "recipe.optim.eps", 0.5),
    "--optim.final-fraction": ("0.5", "recipe.optim.final_fraction", 0.5),
    "--optim.first-moment-dtype": ("bfloat16", "recipe.optim.first_moment_dtype", "bfloat16"),
    "--optim.learning-rate": ("0.5", "recipe.optim.learning_rate", 0.5),
    "--optim.schedule": ("linear", "recipe.optim.schedule", "linear"),
    "--optim.warmup-steps": ("3", "recipe.optim.warmup", 3),
    "--optim.weight-decay": ("0.5", "recipe.optim.weight_decay", 0.5),
    "--plan": ("v5e:2x4", "options.plan", "v5e:2x4"),
    "--plan-json": ("None", "options.plan_json", None),
    "--plan-price": ("None", "options.plan_price", None),
    "--processes.coordinator": ("host:1", "options.processes.coordinator", "host:1"),
    "--processes.count": ("2", "options.processes.count", 2),
    "--processes.detect": ("True", "options.processes.detect", True),
    "--processes.index": ("1", "options.processes.index", 1),
    "--profile": ("2:3", "options.profile", "2:3"),
    "--seed": ("9", "recipe.seed", 9),
    "--steps": ("20", "recipe.steps", 20),
    "--workdir": ("there", "options.workdir", "there"),
}
NEW_FLAGS = {
    "--samples.count": ("2", "options.samples.count", 2),
    "--samples.every": ("5", "options.samples.every", 5),
    "--samples.max-new-tokens": ("9", "options.samples.max_new_tokens", 9),
    "--samples.mode": ("thinking", "options.samples.mode", "thinking"),
    "--samples.path": ("None", "options.samples.path", None),
    "--report-to": ("wandb", "options.report_to", ("wandb",)),
    "--checkpoint.best-by": ("None", "options.checkpoint.best_by", None),
    "--checkpoint.keep-every": ("200", "options.checkpoint.keep_every", 200),
    "--early-stop.min-delta": ("0.1", "options.early_stop.min_delta", 0.1),
    "--early-stop.patience": ("None", "options.early_stop.patience", None),
    "--no-export-best": (None, "options.export_best", False),
    "--data.eval-batches": ("None", "recipe.data.eval_batches", None),
    "--data.eval-fraction": ("0.1", "recipe.data.eval_fraction", 0.1),
    "--data.eval-path": ("x.jsonl", "recipe.data.eval_path", "x.jsonl"),
    "--data.eval-split": ("None", "recipe.data.eval_split", None),
    "--eval-every": ("None", "options.evaluate_every", None),
    "--model.delta-rule": ("associative", "layout.delta_rule", "associative"),
    "--data.sequences-per-batch": ("16", "recipe.data.sequences_per_batch", 16),
    "--data.open-sequences": ("5", "recipe.data.open_sequences", 5),
    "--data.sources.0.form": ("alpaca", "recipe.data.sources.0.form", "alpaca"),
    "--data.sources.0.split": ("dev", "recipe.data.sources.0.split", "dev"),
    "--data.sources.1.subset": ("de", "recipe.data.sources.1.subset", "de"),
    "--branch-from": ("run@3", "recipe.branch_from", "run@3"),
    "--lora.exclude": ("mtp", "recipe.lora.exclude", ("mtp",)),
    "--optim.warmup": ("0.1", "recipe.optim.warmup", 0.1),
}


@pytest.mark.parametrize("flag", OLD_FLAGS | NEW_FLAGS)
def test_a_flag_sets_its_field(flag):
    text, place, value = (OLD_FLAGS | NEW_FLAGS)[flag]
    found = parse([flag] if text is None else [flag, text], DEFAULT)
    for name in place.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    assert found == value


def test_every_field_has_a_flag_that_does_not_name_its_class(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"], DEFAULT)
    help_text = capsys.readouterr().out
    for flag in OLD_FLAGS | NEW_FLAGS:
        assert flag in help_text
    for part in ("recipe", "layout", "options", "objective"):
        assert f"--{part}" not in help_text
    assert "--kind" not in help_text


def test_no_two_classes_have_a_field_of_one_name():
    names = [
        field.name for part in (DEFAULT.recipe, DEFAULT.layout, DEFAULT.options) for field in dataclasses.fields(part)
    ]
    assert len(names) == len(set(names))
    with pytest.raises(ValueError, match="remote: no such field"):
        DEFAULT.replace(remote="none")


RATE = dataclasses.replace(DEFAULT.recipe.optim, learning_rate=0.5)


def tuned(*argv, lora):
    default = DEFAULT.replace(lora=LoraConfig(rank=4) if lora else None, optim=RATE)
    return parse(argv, default.before_overrides(argv)).recipe


def test_tune_adds_adapters_with_their_options():
    recipe = tuned("--tune", "lora", "--lora.rank", "8", "--lora.targets", "q_proj", lora=False)
    assert recipe.lora == LoraConfig(rank=8, targets=("q_proj",))
    # The rate of the run file was chosen for whole weights.
    assert recipe.optim.learning_rate is None
    assert tuned("--tune=lora", "--optim.learning-rate", "0.2", lora=False).optim.learning_rate == 0.2


def test_tune_takes_adapters_away():
    recipe = tuned("--tune", "full", "--train", "mtp", "norm.*", lora=True)
    assert recipe.lora is None and recipe.optim.learning_rate is None and recipe.train == ("mtp", "norm.*")


def test_tune_as_the_run_file_changes_nothing():
    assert tuned("--tune", "lora", lora=True) == tuned(lora=True)
    assert tuned("--tune", "full", lora=False) == tuned(lora=False)
    assert tuned(lora=True).optim.learning_rate == 0.5


def test_adapters_need_tune_in_a_recipe_without():
    for argv in (["--lora.rank", "8"], ["--lora.rank=8", "--tune", "full"], ["--tune", "full", "--lora.rank", "8"]):
        for lora in {False, "--tune" in argv}:
            with pytest.raises(ValueError, match=r"no adapters, so that --lora\.rank changes nothing; add --tune lora"):
                tuned(*argv, lora=lora)
    with pytest.raises(ValueError, match="--tune"):
        tuned("--tune", "half", lora=False)


def test_rollouts_are_the_run_files_alone():
    argv, told = ["--rollouts.answers=4"], r"no rollouts, so that --rollouts\.answers changes .* docs/distillation\.md"
    for objective in (Supervised(), Distillation()):
        with pytest.raises(ValueError, match=told):
            DEFAULT.replace(objective=objective).before_overrides(argv)
    default = DEFAULT.replace(objective=Distillation(rollouts=RolloutConfig(answers=2)))
    assert parse(argv, default.before_overrides(argv)).recipe.objective.rollouts.answers == 4


def test_an_option_of_vision_turns_it_on():
    argv = ["--data.vision.max-pixels", "262144", "--tune", "full"]
    found = parse(argv, DEFAULT.before_overrides(argv)).recipe
    assert found.data.vision == VisionDataConfig(max_pixels=262_144) and found.lora is None
    assert parse([], DEFAULT.before_overrides([])).recipe.data.vision is None
