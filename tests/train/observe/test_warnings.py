"""What is warned of, when, and what is not."""

import pytest

from train.config import DataConfig, LoraConfig, ModelSource, OptimConfig, Recipe
from train.observe.warnings import WINDOW, LossWatch, high_rate, many_epochs

RECIPE = Recipe(ModelSource("base"), DataConfig("x.jsonl"), steps=1000)


def test_many_epochs_name_the_steps_for_a_few():
    assert many_epochs(3, 1000) == many_epochs(10, 1000) == []
    (warning,) = many_epochs(109, 1000)
    assert "steps=1,000 are about 109 epochs" in warning and "--steps 28" in warning
    # One row a thousand times.
    assert "--steps 3," in many_epochs(1000, 1000)[0]


@pytest.mark.parametrize(
    ("rate", "lora", "hidden", "warns"),
    [
        (None, None, 2048, False),
        (1e-4, None, 2048, True),
        (2e-5, None, 2048, False),
        (None, LoraConfig(), 2048, False),
        (2e-4, LoraConfig(), 2048, False),
        (2e-3, LoraConfig(), 2048, True),
        # The tiny models of the examples take high rates.
        (3e-3, None, 64, False),
    ],
)
def test_high_rates(rate, lora, hidden, warns):
    recipe = Recipe(RECIPE.model, RECIPE.data, steps=10, optim=OptimConfig(rate), lora=lora).decide()
    assert bool(high_rate(recipe, hidden)) == warns


def watched(losses, *, vocab_size=248_320, warmup=5, term="loss", **more):
    """Watches a term, beside which others have values of their own."""
    watch = LossWatch(vocab_size=vocab_size, learning_rate=1e-3, warmup=warmup, weights={term: 1.0})
    return [
        (step, text)
        for step, loss in enumerate(losses, start=1)
        for text in watch.add(step, {**more, term: loss} if loss is not None else {})
    ]


def test_a_falling_loss_and_a_noisy_one_are_left_alone():
    assert not watched([12.4 - 0.1 * step for step in range(100)])
    assert not watched([1.0 + 0.4 * (-1) ** step for step in range(200)])
    # Small losses may double; that is noise.
    assert not watched([0.05] * 50 + [0.15] * 50)


def test_a_rising_loss_is_warned_of_once():
    warnings = watched([2.0] * 30 + [2.0 + 0.2 * step for step in range(60)])
    ((step, text),) = [(step, text) for step, text in warnings if "risen" in text]
    assert 40 < step < 60
    assert "from 2 at step" in text and "--optim.learning-rate 0.0002" in text


def test_a_loss_of_guessing_is_warned_of_after_the_warmup():
    ((step, text),) = watched([12.42] * 100, warmup=30)
    assert step == 30 + WINDOW
    assert "is still that of a guess, which is 12.4" in text
    assert not watched([12.42] * 10 + [11.0] * 90)


def test_a_divergence_is_no_guess_however_large_but_the_cross_entropy_beside_it_may_be():
    assert not watched([12.42] * 100, term="divergence", loss=2.0)
    ((step, text),) = watched([0.5] * 100, term="divergence", loss=12.42)
    assert step == 5 + WINDOW and "the loss, 12.4, is still that of a guess" in text


def test_a_divergence_rises_by_less_than_a_cross_entropy():
    assert not watched([0.05] * 50 + [0.12] * 50, term="divergence")
    ((_, text),) = watched([0.05] * 50 + [0.25] * 50, term="divergence")
    assert "the divergence has risen to 0.1" in text and "from 0.05 at step" in text
    assert not watched([0.05] * 50 + [0.25] * 50)


def test_a_student_of_labels_too_may_move_away_from_its_teacher():
    watch = LossWatch(vocab_size=512, learning_rate=1e-3, warmup=0, weights={"divergence": 1.0, "loss": 0.5})
    steps = [{"divergence": 0.002 * step, "loss": 3 - 0.01 * step} for step in range(200)]
    assert not [text for step, values in enumerate(steps) for text in watch.add(step, values)]
    worse = [values | {"loss": 3.0} for values in steps]
    (text,) = [text for step, values in enumerate(worse, start=200) for text in watch.add(step, values)]
    assert "the divergence + 0.5 loss has risen" in text


def test_skipped_steps_have_no_loss():
    assert not watched([None, float("nan")] * 100)
