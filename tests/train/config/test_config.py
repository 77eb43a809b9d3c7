"""Settings that cannot work are refused when they are built."""

import pytest

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
        ({"optim": OptimConfig(warmup_steps=10)}, "steps=10 ends inside the warmup of 10 steps"),
        ({"accumulation": 3}, "sequences_per_batch=8 .* multiple of 3"),
        ({"profile": "3:2"}, "profile='3:2'"),
        ({"profile": "9:11"}, "beyond the last step; end it by steps=10"),
        ({"evaluate_every": 5}, "evaluate_every=5, but there is nothing to evaluate; .* --data.eval-path"),
        ({"evaluate_every": 0}, "evaluate_every=0 must be at least 1"),
        ({"plan_json": "plan.json"}, "name its TPUs with --plan"),
        ({"lora": LoraConfig(targets=("mtp",)), "objective": Supervised(MtpLossConfig(weight=0))}, "never trains it"),
        (
            {"lora": LoraConfig(), "objective": Supervised(MtpLossConfig(gradient="detach_trunk"))},
            "reaches none of lora.targets",
        ),
        (
            {"lora": LoraConfig(targets=("embed",)), "objective": Supervised(MtpLossConfig(gradient="head_only"))},
            "'head_only' reaches",
        ),
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
        (lambda: OptimConfig(warmup_steps=-1), "warmup_steps=-1"),
        (lambda: OptimConfig(b2=1.0), "b2=1.0"),
        (lambda: OptimConfig(final_fraction=2), "final_fraction=2"),
        (lambda: OptimConfig(clip_norm=0), "clip_norm=0"),
        (lambda: CheckpointConfig(every=0), "checkpoint.every=0"),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_constant_rate_may_end_in_its_warmup():
    GOOD.replace(optim=OptimConfig(warmup_steps=10, schedule="constant"))


def test_weights_that_train_are_held_in_float32_by_default():
    assert GOOD.recipe.param_dtype == "float32"
    assert GOOD.replace(lora=LoraConfig()).recipe.param_dtype == "bfloat16"
    source = ModelSource("base", dtype="bfloat16", param_dtype="bfloat16")
    assert GOOD.replace(model=source).recipe.param_dtype == "bfloat16"
