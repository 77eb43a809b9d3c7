"""How long a run may still take, from the lengths of its responses.

What has finished first is short, so that the mean of finished lengths is too low for what still runs and waits. The
survival curve of lengths (Kaplan and Meier) counts a running response too: it is at least as long as it is now. From
that curve lengths are drawn for the responses that run, given how long they are, and for those that wait; a response
that waits begins where a slot comes free. The time is that of the last one to end, and the middle of the draws is told.

Source: Kaplan and Meier (1958), J. Am. Stat. Assoc. 53, 457-481.
"""

import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np

_DRAWS = 31
# Of those that wait, so many a slot are placed one by one; before them every slot is busy, and only their sum counts.
_PLACED_A_SLOT = 8


@dataclasses.dataclass(frozen=True)
class Tail:
    """How long responses are that are longer than all that have ended.

    What is left of a response may be about the same whatever its length so far (exponential), or grow with it (Pareto),
    as where some responses never end. How well each fits the longer half of the responses weighs them.

    Attributes:
      mean: tokens that follow on average, by the first.
      log_ratio: mean logarithm of the whole length divided by the length so far, by the second.
      growing: the weight of the second.
    """

    mean: float
    log_ratio: float
    growing: float

    def draw(self, beyond: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns lengths of responses that are ``beyond`` already, by one of the two."""
        noise = rng.exponential(size=len(beyond))
        if rng.uniform() < self.growing:
            return np.maximum(beyond, 1.0) * np.exp(self.log_ratio * noise)
        return beyond + self.mean * noise


@dataclasses.dataclass(frozen=True)
class Survival:
    """The distribution of response lengths.

    Attributes:
      lengths: where responses have ended, ascending.
      longer: the share of responses that are longer than each of these.
      tail: what follows the last of them.
    """

    lengths: np.ndarray
    longer: np.ndarray
    tail: Tail

    def draw(self, beyond: np.ndarray, limits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns random lengths, each longer than ``beyond`` and at most its limit."""
        reached = np.append(1.0, self.longer)[np.searchsorted(self.lengths, beyond, side="right")]
        share = reached * rng.uniform(size=len(beyond))
        # The first length that no more than this share of responses exceed; none if the curve ends above it.
        drawn = np.append(self.lengths, np.inf)[np.searchsorted(-self.longer, -share)]
        last = np.maximum(beyond, self.lengths[-1] if len(self.lengths) else 0.0)
        drawn = np.where(np.isinf(drawn), self.tail.draw(last, rng), drawn)
        return np.minimum(np.maximum(drawn, beyond + 1), limits)


def survival(finished: Sequence[int], cut: Sequence[bool], running: Sequence[float]) -> Survival:
    """Returns the Kaplan-Meier estimate of the lengths of responses.

    Args:
      finished: tokens of those that have ended.
      cut: of these, whether a limit ended it; it would have been longer.
      running: tokens so far of those that have not ended.
    """
    ended, is_cut = np.asarray(finished, float), np.asarray(cut, bool)
    own = np.sort(ended[~is_cut])
    censored = np.sort(np.concatenate([ended[is_cut], np.asarray(running, float)]))
    lengths, counts = np.unique(own, return_counts=True)
    # A response that is exactly as long as one that ended was still there when that one ended.
    at_risk = sum(len(each) - np.searchsorted(each, lengths) for each in (own, censored))
    longer = np.cumprod(1.0 - counts / np.maximum(at_risk, 1))
    return Survival(lengths, longer, _tail(own, np.concatenate([own, censored])))


def _tail(own: np.ndarray, every: np.ndarray) -> Tail:
    """Fits both kinds of tail to what is longer than the middle length, and weighs them by their likelihood.

    Args:
      own: lengths of the responses that ended by themselves.
      every: these, and what the others have so far.
    """
    middle = max(float(np.median(every)), 1.0) if len(every) else 1.0
    longer, own = every[every > middle], own[own > middle]
    num_ended = max(len(own), 1)
    mean, log_ratio = (longer - middle).sum() / num_ended, np.log(longer / middle).sum() / num_ended
    if not mean > 0:
        return Tail(middle, 1.0, 0.0)
    log_odds = num_ended * (np.log(mean) - np.log(log_ratio)) - np.log(own).sum()
    return Tail(float(mean), float(log_ratio), float(1 / (1 + np.exp(np.clip(-log_odds, -50, 50)))))


def tokens_to_the_end(
    lengths: Survival, running: Sequence[float], running_limits: Sequence[int], waiting_limits: Sequence[int],
    slots: int,
) -> float:  # fmt: skip
    """Returns how many tokens a slot that is never idle writes until the last response has ended, the median of draws.

    Args:
      running: tokens so far of each running response.
      running_limits, waiting_limits: most tokens of each response; those that wait begin in this order.
      slots: most responses at once.
    """
    rng = np.random.default_rng(0)
    beyond, limits = np.asarray(running, float), np.asarray(running_limits, float)
    waiting = np.asarray(waiting_limits, float)
    ends = []
    for _ in range(_DRAWS):
        left = lengths.draw(beyond, limits, rng) - beyond
        new = lengths.draw(np.zeros(len(waiting)), waiting, rng)
        ends.append(_last_end(left, new, slots))
    return float(np.median(ends))


def _last_end(left: np.ndarray, new: np.ndarray, slots: int) -> float:
    """Returns when the last of these ends, if each of ``new`` begins where a slot comes free."""
    together = max(len(new) - _PLACED_A_SLOT * slots, 0)
    busy = np.sort(np.append(np.zeros(max(slots - len(left), 0)), left))
    # The level that this work fills the slots to; those above it are not touched.
    levels = (new[:together].sum() + np.cumsum(busy)) / np.arange(1, len(busy) + 1)
    num_filled = max(int((busy < levels).sum()), 1)
    ends = np.maximum(busy, levels[num_filled - 1] if together else 0.0).tolist()
    heapq.heapify(ends)
    for length in new[together:]:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)
