"""Signs that a run will not give what its user wants, each with the remedy: some at the start, some as it trains."""

import math
from collections import deque
from collections.abc import Iterator, Mapping

from train.config import Recipe

MOST_EPOCHS = 10
"""More passes over the data are rarely meant: by then a model knows its examples by heart."""
HIGHEST_RATES = {"full": 5e-5, "lora": 1e-3}
"""Five to ten times what is usual for a trained model. One narrower than ``_NARROW`` takes higher rates."""
WINDOW = 20
"""Steps over which terms are averaged before they are judged."""
_NARROW = 512
_NEAR_GUESSING = 0.95
_RISE = 1.5
# In nats. Divergences from a teacher are smaller than cross-entropies; 1 is the most that a total variation can be.
_LEAST_RISE, _LEAST_RISE_OF_OTHERS = 0.3, 0.1
_CROSS_ENTROPY = "loss"


def many_epochs(epochs: float, steps: int) -> list[str]:
    """Warns of a run that passes its data too often."""
    if epochs <= MOST_EPOCHS:
        return []
    fewer = max(1, math.ceil(3 * steps / epochs))
    return [
        f"steps={steps:,} are about {epochs:,.0f} epochs of these data, so the model will learn them by heart; for 3 "
        f"epochs give --steps {fewer}, or give more data"
    ]


def high_rate(settled: Recipe, hidden_size: int) -> list[str]:
    """Warns of a learning rate that makes a trained model of this width forget."""
    rate, limit = settled.optim.learning_rate, HIGHEST_RATES[settled.kind]
    assert rate is not None, "the learning rate is decided"
    if rate <= limit or hidden_size < _NARROW:
        return []
    what = "adapters" if settled.trains_adapters else "whole weights"
    return [
        f"optim.learning_rate={rate:g} is high for {what} of a trained model, where more than {limit:g} often makes "
        "the loss rise; --optim.learning-rate None takes the default"
    ]


class LossWatch:
    """Follows what a run minimises, and its cross-entropy, and warns once of each sign.

    What is minimised may rise, whatever it is. Only a cross-entropy, the term ``loss``, tells that a model guesses.

    Args:
      vocab_size: a model that guesses has the logarithm of it as its cross-entropy.
      warmup: steps before the learning rate reaches its peak.
      weights: of the terms that are minimised, without those of the MTP head.
    """

    def __init__(self, *, vocab_size: int, learning_rate: float, warmup: int, weights: Mapping[str, float]):
        self._guessing, self._rate, self._warmup = math.log(vocab_size), learning_rate, warmup
        self._weights = {name: weight for name, weight in weights.items() if weight}
        self._least_rise = _LEAST_RISE if _CROSS_ENTROPY in self._weights else _LEAST_RISE_OF_OTHERS
        self._minimised, self._cross_entropies = _Window(), _Window()
        self._lowest = (math.inf, 0)
        self._said: set[str] = set()

    def add(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Takes the metrics of the next step and returns warnings. The terms of a step that was skipped may be NaN."""
        minimised = sum(weight * values.get(name, math.nan) for name, weight in self._weights.items())
        new = [
            *self._check_rise(step, self._minimised.add(minimised)),
            *self._check_guess(step, self._cross_entropies.add(values.get(_CROSS_ENTROPY, math.nan))),
        ]
        return [f"step {step}: {text}" for text in new]

    def _check_rise(self, step: int, mean: float | None) -> Iterator[str]:
        if mean is None:
            return
        self._lowest = min(self._lowest, (mean, step))
        lowest, when = self._lowest
        if mean <= max(_RISE * lowest, lowest + self._least_rise) or "rises" in self._said:
            return
        self._said.add("rises")
        names = [name if weight == 1 else f"{weight:g} {name}" for name, weight in self._weights.items()]
        yield (
            f"the {' + '.join(names)} has risen to {mean:.3g} from {lowest:.3g} at step {when}, as it does at too high "
            f"a learning rate (it is {self._rate:g}); stop and train anew, or from a checkpoint before by "
            f"--branch-from, with --optim.learning-rate {self._rate / 5:.1g} and a longer --optim.warmup"
        )

    def _check_guess(self, step: int, mean: float | None) -> Iterator[str]:
        if mean is None or step < self._warmup + WINDOW or mean <= _NEAR_GUESSING * self._guessing:
            return
        if "guesses" in self._said:
            return
        self._said.add("guesses")
        yield (
            f"after the warmup the loss, {mean:.3g}, is still that of a guess, which is {self._guessing:.3g}, the "
            "logarithm of the vocabulary. Is the checkpoint a trained one, and its tokenizer its own? Else the "
            f"learning rate ({self._rate:g}) is too high, or so low that nothing is learnt"
        )


class _Window:
    """The last values of a figure."""

    def __init__(self):
        self._values: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> float | None:
        """Returns the mean of the last values with this one; None if it is not finite or there are too few."""
        if not math.isfinite(value):
            return None
        self._values.append(value)
        return sum(self._values) / WINDOW if len(self._values) == WINDOW else None
