"""Signs that a run will not give what its user wants, each with the remedy: some at the start, some as it trains."""

import math
from collections import deque

from train.config import Recipe

MOST_EPOCHS = 10
"""More passes over the data are rarely meant: by then a model knows its examples by heart."""
HIGHEST_RATES = {"full": 5e-5, "lora": 1e-3}
"""Five to ten times what is usual for a trained model. One narrower than ``_NARROW`` takes higher rates."""
WINDOW = 20
"""Steps over which losses are averaged before they are judged."""
_NARROW = 512
_NEAR_GUESSING = 0.95
_RISE, _LEAST_RISE = 1.5, 0.3


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
    """Follows the loss of a run and warns once of each sign.

    Args:
      vocab_size: a model that guesses has the logarithm of it as its loss.
      warmup: steps before the learning rate reaches its peak.
    """

    def __init__(self, *, vocab_size: int, learning_rate: float, warmup: int):
        self._guessing, self._rate, self._warmup = math.log(vocab_size), learning_rate, warmup
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._lowest = (math.inf, 0)
        self._said: set[str] = set()

    def add(self, step: int, loss: float | None) -> list[str]:
        """Takes the loss of the next step and returns warnings. A step that was skipped has none."""
        if loss is None or not math.isfinite(loss):
            return []
        self._recent.append(loss)
        if len(self._recent) < WINDOW:
            return []
        mean = sum(self._recent) / WINDOW
        self._lowest = min(self._lowest, (mean, step))
        lowest, when = self._lowest
        signs = {
            "rises": mean > max(_RISE * lowest, lowest + _LEAST_RISE),
            "guesses": step >= self._warmup + WINDOW and mean > _NEAR_GUESSING * self._guessing,
        }
        new = [sign for sign, is_seen in signs.items() if is_seen and sign not in self._said]
        self._said.update(new)
        texts = {
            "rises": f"the loss has risen to {mean:.3g} from {lowest:.3g} at step {when}, as it does at too high a "
            f"learning rate (it is {self._rate:g}); stop and train anew, or from a checkpoint before by --branch-from, "
            f"with --optim.learning-rate {self._rate / 5:.1g} and a longer --optim.warmup",
            "guesses": f"after the warmup the loss, {mean:.3g}, is still that of a guess, which is "
            f"{self._guessing:.3g}, the logarithm of the vocabulary. Is the checkpoint a trained one, and its "
            f"tokenizer its own? Else the learning rate ({self._rate:g}) is too high, or so low that nothing is learnt",
        }
        return [f"step {step}: {texts[sign]}" for sign in new]
