"""Says which row is the document at a position of a run. It depends on the seed and the position alone.

A fixed pattern of 65,536 places says which source is drawn from. A source has as many places as its weight asks for;
they are spread evenly, with some chance. A source goes through its rows pass after pass, each time in another order:
its groups of rows are shuffled and cut into windows of a bounded number of bytes, and the rows of a window are shuffled
among each other. A source of JSONL files is a single window, so all its rows are shuffled among each other.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int64

PLACES = 1 << 16
_HELD_OUT = 0x68656C64


def held_out_rows(count: int, fraction: float | None, seed: tuple[int, ...]) -> frozenset[int]:
    """Returns which of a source's rows never train: the first places of a shuffle, so many as the fraction says.

    Raises:
      ValueError: there are too few rows to hold any out.
    """
    if fraction is None:
        return frozenset()
    if count < 2:
        raise ValueError(
            f"data.eval_fraction={fraction} cannot hold rows out of a source with a single row; give data.eval_path."
        )
    number = min(max(round(fraction * count), 1), count - 1)
    # A stream of its own, so that the order of the documents is as without held-out rows.
    [own_seed] = np.random.SeedSequence([*seed, _HELD_OUT]).generate_state(1).tolist()
    shuffled = grain.MapDataset.range(count).shuffle(seed=own_seed)
    return frozenset(int(shuffled[place]) for place in range(number))  # pyrefly: ignore[bad-argument-type]


class Mixture:
    """Which source each position draws from, and how many draws from that source came before.

    An epoch ends once every source has been read in full. Small sources with high weights may repeat, reshuffled each
    time. With one source an epoch is one pass.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int):
        """Lays out the pattern.

        Args:
          lengths: the rows of each source.
          weights: how many documents to take from each source, relative to the others.

        Raises:
          ValueError: a weight is too small to be given a place.
        """
        self.places = _shares(weights)
        rng = np.random.default_rng([seed, len(weights)])
        # With n places, a source has one in each of n equal stretches of the pattern.
        times = [(np.arange(count) + rng.random(count)) / count for count in self.places]
        order = np.argsort(np.concatenate(times), kind="stable")
        self._source = np.repeat(np.arange(len(weights)), self.places)[order]
        self._draw = np.concatenate([np.arange(count) for count in self.places])[order]
        self.epoch_length = max(self._position_of(source, rows - 1) + 1 for source, rows in enumerate(lengths))

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Returns the source that a position draws from, and how many draws from it came before."""
        period, place = divmod(position, len(self._source))
        source = int(self._source[place])
        return source, period * self.places[source] + int(self._draw[place])

    def draws_before(self, position: int) -> list[int]:
        """Counts for each source the documents drawn at the positions before this one."""
        period, place = divmod(position, len(self._source))
        in_period = np.bincount(self._source[:place], minlength=len(self.places))
        return [period * count + int(more) for count, more in zip(self.places, in_period, strict=True)]

    def _position_of(self, source: int, draw: int) -> int:
        period, draw = divmod(draw, self.places[source])
        return period * len(self._source) + int(np.flatnonzero(self._source == source)[draw])


def _shares(weights: Sequence[float]) -> list[int]:
    """Deals the places of the pattern by weight; places left over by rounding go to the largest remainders."""
    if len(weights) == 1:
        return [1]
    exact = np.asarray(weights) / np.sum(weights) * PLACES
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: PLACES - shares.sum()]] += 1
    if not shares.all():
        raise ValueError(
            f"the weight {weights[int(np.argmin(shares))]} in data.sources is too small beside the sum of all, "
            f"{sum(weights)}; a source needs at least one document in {PLACES:,}."
        )
    return shares.tolist()


class _Pass(NamedTuple):
    """The shuffled row groups of one pass; all arrays are in that order."""

    first_rows: Int64[np.ndarray, " G"]
    ends: Int64[np.ndarray, " G"]
    window_ends: Int64[np.ndarray, " W"]


class ShuffledRows:
    """The rows of one source in an endless order: pass after pass, each in another order."""

    def __init__(
        self, group_rows: Sequence[int], group_bytes: Sequence[int], *, window_bytes: int, seed: tuple[int, ...]
    ):
        """Takes the sizes of the row groups in the order of the rows; a window consists of whole groups."""
        self._rows, self._bytes = np.asarray(group_rows, np.int64), np.asarray(group_bytes, np.int64)
        self._first = np.cumsum(self._rows) - self._rows
        self._window_bytes, self._seed = window_bytes, seed
        self._length = int(self._rows.sum())
        # Neighbouring positions share their pass and, except at its borders, their window.
        self._pass = lru_cache(maxsize=2)(self._make_pass)
        self._window = lru_cache(maxsize=4)(self._make_window)

    def __len__(self) -> int:
        """The rows of one pass."""
        return self._length

    def __getitem__(self, draw: int) -> int:
        """Returns the number of the row that is drawn after ``draw`` others."""
        number, place = divmod(draw, self._length)
        groups = self._pass(number)
        window = int(np.searchsorted(groups.window_ends, place, side="right"))
        end = int(groups.window_ends[window])
        start = int(groups.window_ends[window - 1]) if window else 0
        shuffled = self._window(number, window, end - start)[place - start]
        assert shuffled is not None
        place = start + shuffled
        group = int(np.searchsorted(groups.ends, place, side="right"))
        before = int(groups.ends[group - 1]) if group else 0
        return int(groups.first_rows[group]) + place - before

    def _make_pass(self, number: int) -> _Pass:
        order = np.random.default_rng([*self._seed, number]).permutation(len(self._rows))
        sizes, ends = self._bytes[order], np.cumsum(self._rows[order])
        window = (np.cumsum(sizes) - sizes) // self._window_bytes
        last_of_window = np.flatnonzero(np.append(window[1:] != window[:-1], True))
        return _Pass(self._first[order], ends, ends[last_of_window])

    def _make_window(self, number: int, window: int, length: int) -> grain.MapDataset[int]:
        [seed] = np.random.SeedSequence([*self._seed, number, window]).generate_state(1).tolist()
        return grain.MapDataset.range(length).shuffle(seed=seed)
