from dataclasses import dataclass
from typing import Literal

import pytest

from train.objectives.choices import check_choices


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
