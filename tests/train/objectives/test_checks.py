"""Settings that hold what their types do not allow, or numbers that are none."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import pytest

import train.config
from train.config import DataConfig, Source
from train.objectives.checks import check_choices

# Every float of every class of settings, so that a new one is looked at too.
CLASSES = [each for name in train.config.__all__ if dataclasses.is_dataclass(each := getattr(train.config, name))]
NUMBERS = [
    (settings, name)
    for settings in CLASSES
    for name, hint in get_type_hints(settings).items()
    if float in (hint, *get_args(hint))
]


@dataclass
class Settings:
    signal: Literal["hidden", "topk"] = "hidden"
    divergence: Literal["forward", "reverse"] | None = None
    k: int = 64


@pytest.mark.parametrize("settings", [Settings(), Settings("topk", "reverse", 3)])
def test_listed_values_pass(settings):
    check_choices(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(signal="logits"), "teacher.signal='logits' is unknown; choose one of hidden, topk."),
        (Settings(signal=None), "teacher.signal=None is unknown"),
        (Settings(divergence="kl"), "teacher.divergence='kl' is unknown; choose one of forward, reverse."),
    ],
)
def test_other_values_are_named_with_those_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        check_choices(settings, "teacher.")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("settings", "name"), NUMBERS, ids=lambda each: getattr(each, "__name__", each))
def test_no_setting_takes_what_is_not_finite(settings, name, value):
    required = {"path": "x.jsonl"} if settings in (DataConfig, Source) else {}
    with pytest.raises(ValueError, match=rf"{name}.*(nan|inf)|(nan|inf).*{name}|the weight -?(nan|inf)"):
        settings(**required, **{name: value})


def test_every_number_is_looked_at():
    assert {"loss_weight", "weight", "eps", "temperature", "grad_norm_factor", "plan_price"} <= {n for _, n in NUMBERS}
