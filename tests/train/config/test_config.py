"""Settings that cannot work are refused when they are built."""

import importlib

import pytest

from qwen35_jax.command import parse
from tests.conftest import REPO
from train.config import (
    CheckpointConfig,
    DataConfig,
    LoraConfig,
    ModelSource,
    MtpLossConfig,
    OptimConfig,
    Recipe,
    Supervised,
    TrainConfig,
)

GOOD = TrainConfig(
    Recipe(ModelSource("base"), DataConfig("train.jsonl", sequence_length=64, sequences_per_batch=8), steps=10)
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"accumulation": 0}, "accumulation=0"),
        ({"accumulation": 3}, "sequences_per_batch=8 .* multiple of 3"),
        ({"profile": "3:2"}, "profile='3:2'"),
        ({"profile": "9:11"}, "beyond the last step; end it by steps=10"),
        ({"evaluate_every": 5}, "evaluate_every=5, but there is nothing to evaluate; .* --data.eval-path"),
        ({"evaluate_every": 0}, "evaluate_every=0 must be at least 1"),
        ({"plan_json": "plan.json"}, "name its TPUs with --plan"),
        ({"train": ()}, "names no weights"),
        ({"train": ("all", "mtp")}, "names no weights; give all, alone or with tower and merger"),
        ({"train": ("mtp.(",)}, "no regular expression"),
        ({"train": ("mtp",), "lora": LoraConfig()}, "train whole weights with --tune full"),
        ({"tune": "full", "model": ModelSource("base", adapter="folder")}, "merge it into its base"),
        ({"branch_from": "runs/first"}, "names no step; give RUN@STEP"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        GOOD.replace(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MtpLossConfig(weight=-1), "mtp.weight=-1"),
        (lambda: MtpLossConfig(num_steps=0), "mtp.num_steps=0"),
        (lambda: OptimConfig(learning_rate=0), "learning_rate=0"),
        (lambda: OptimConfig(warmup=-1), "warmup=-1"),
        (lambda: OptimConfig(warmup=1.0), "warmup=1.0 must be a whole number of steps"),
        (lambda: OptimConfig(warmup=float("nan")), "warmup=nan"),
        (lambda: OptimConfig(learning_rate=float("nan")), "learning_rate=nan"),
        (lambda: OptimConfig(b2=1.0), "b2=1.0"),
        (lambda: OptimConfig(final_fraction=2), "final_fraction=2"),
        (lambda: OptimConfig(clip_norm=0), "clip_norm=0"),
        (lambda: CheckpointConfig(every=0), "checkpoint.every=0"),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("optim", "steps", "want"),
    [
        (OptimConfig(), 1000, 30),
        (OptimConfig(), 10, 1),
        (OptimConfig(warmup=0), 10, 0),
        (OptimConfig(warmup=0.25), 10, 3),
        (OptimConfig(warmup=9), 10, 9),
        # A smoke run of a recipe just runs.
        (OptimConfig(warmup=30), 3, 1),
        (OptimConfig(warmup=10), 10, 5),
        (OptimConfig(warmup=1), 1, 0),
        # A run at a constant rate may be lengthened beyond its warmup.
        (OptimConfig(warmup=30, schedule="constant"), 3, 30),
    ],
)
def test_the_steps_of_the_warmup(optim, steps, want):
    assert GOOD.replace(optim=optim, steps=steps).recipe.decide().optim.warmup == want


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPO / "configs").glob("*.py")))
def test_every_recipe_takes_three_steps(name):
    module = importlib.import_module(f"configs.{name}")
    if isinstance(config := getattr(module, "config", lambda: None)(), TrainConfig):
        recipe = parse(["--steps", "3"], config).recipe.decide()
        assert recipe.steps == 3 and recipe.optim.warmup < 3


def test_the_rate_is_that_of_what_trains_unless_given():
    def rate(**changes):
        return GOOD.replace(**changes).recipe.decide().optim.learning_rate

    assert rate() == 1e-5
    assert rate(lora=LoraConfig()) == rate(model=ModelSource("base", adapter="folder")) == 1e-4
    assert rate(optim=OptimConfig(learning_rate=0.5)) == 0.5
    assert GOOD.recipe.decide() == GOOD.recipe.decide().decide()


def test_adapters_that_would_not_train_are_left_out():
    untrained = Supervised(MtpLossConfig(weight=0))

    def exclude(objective=untrained, **settings):
        return GOOD.replace(lora=LoraConfig(**settings), objective=objective).recipe.decide().lora.exclude

    assert exclude() == exclude(exclude=("mtp",)) == ("mtp",)
    assert exclude(objective=Supervised()) == ()
    # It was asked for by name: the objective refuses it.
    assert exclude(targets=("mtp", "mlp")) == ()


def test_tune_changes_what_trains():
    adapted = GOOD.replace(lora=LoraConfig(rank=4))
    assert adapted.replace(tune="full").recipe == GOOD.recipe
    assert adapted.replace(tune="lora").recipe == adapted.recipe
    assert GOOD.replace(tune="lora").recipe.lora == LoraConfig()
    assert adapted.replace(tune="full").recipe.tune is None


def test_weights_that_train_are_held_in_float32_by_default():
    assert GOOD.recipe.param_dtype == "float32"
    assert GOOD.replace(lora=LoraConfig()).recipe.param_dtype == "bfloat16"
    source = ModelSource("base", dtype="bfloat16", param_dtype="bfloat16")
    assert GOOD.replace(model=source).recipe.param_dtype == "bfloat16"
