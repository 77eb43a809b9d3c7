"""The values of stored samples as arrays, metric by metric, so that tens of thousands are summed at once."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from eval.samples import Sample
from eval.stats import Estimate, clustered_counts, mean_interval, wilson

CIRCULAR = "circular"
"""The metric of questions that were asked with their options in several orders; no sample stores it."""


@dataclasses.dataclass(frozen=True)
class Trials:
    """The trials of one metric, one entry a sample. Samples without the metric have no entry.

    Attributes:
      place: which sample it is, [samples].
      document: the number of its document, [samples].
      total: the sum of its trials, [samples].
      count: how many trials it has, [samples].
      binary: whether all trials are 0 or 1.
      single: whether no sample has more than one trial.
      leader: of ``circular``: for every stored sample the place of the first of its circle, [samples]; else None.
    """

    place: np.ndarray
    document: np.ndarray
    total: np.ndarray
    count: np.ndarray
    binary: bool
    single: bool
    leader: np.ndarray | None = None

    def only(self, wanted: np.ndarray) -> "Trials":
        """Returns the trials of some samples; ``wanted`` says for every stored sample whether it is one of them."""
        kept = wanted[self.place]
        return dataclasses.replace(
            self,
            place=self.place[kept],
            document=self.document[kept],
            total=self.total[kept],
            count=self.count[kept],
        )

    def lost(self, lost: np.ndarray) -> "Trials":
        """Returns the trials with those of some samples set to 0; ``lost`` has one entry for every stored sample."""
        return dataclasses.replace(self, total=np.where(self.any_of(lost)[self.place], 0.0, self.total))

    def any_of(self, mask: np.ndarray) -> np.ndarray:
        """Returns a mask of samples that is also set where another sample of the same circle has it set."""
        if self.leader is None:
            return mask
        spread = mask.copy()
        spread[self.leader[mask]] = True
        return spread[self.leader]

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the documents that have trials, and for each a row with its hits and its weight.

        A document's samples are averaged first, so that one with more samples weighs no more. Where a sample has
        several trials, the document weighs as much as it has trials.
        """
        numbers, place = np.unique(self.document, return_inverse=True)
        samples = np.bincount(place, minlength=len(numbers))
        if self.single or not self.binary:
            means = np.bincount(place, self.total / self.count, minlength=len(numbers)) / np.maximum(samples, 1)
            return numbers, np.stack([means, np.ones(len(numbers))], axis=1)
        sums = [np.bincount(place, each, minlength=len(numbers)) for each in (self.total, self.count)]
        return numbers, np.stack(sums, axis=1)

    def estimate(self) -> Estimate:
        """Returns the value of the metric with its interval, by the kind of its trials.

        - Trials of 0 and 1, one a document: the share of ones, with ``wilson``.
        - Trials of 0 and 1, several a document: the share, with ``clustered_counts`` over documents.
        - Other numbers: the mean over documents, with ``mean_interval``; where all lie within 0 and 1, so
          does the interval.

        Raises:
          ValueError: there is no trial.
        """
        if not len(self.place):
            raise ValueError("there are no trials to estimate from; give at least one.")
        hits, sizes = self.documents()[1].T
        if not self.binary:
            value, *interval = mean_interval(hits)
            within = hits.min() >= 0 and hits.max() <= 1
            low, high = (min(max(end, 0.0), 1.0) if within else end for end in interval)
            return value, low, high
        if not self.single:
            return clustered_counts(hits, sizes)
        if len(self.place) == len(hits):
            return float(hits.sum()) / len(hits), *wilson(float(hits.sum()), len(hits))
        return clustered_counts(hits, sizes, trials=len(self.place))


def trials_of(samples: Sequence[Sample], numbers: dict[str, int] | None = None) -> dict[str, Trials]:
    """Returns the trials of every metric that a sample has, in the order in which the metrics come up.

    Args:
      samples: stored samples of one task.
      numbers: the number of each document by its id as text, for documents that are known already; others are added.
    """
    numbers = {} if numbers is None else numbers
    columns: dict[str, list[tuple[int, int, float, int]]] = {}
    odd: set[str] = set()
    for place, sample in enumerate(samples):
        document = numbers.setdefault(str(sample["id"]), len(numbers))
        for name, trials in sample["metrics"].items():
            columns.setdefault(name, []).append((place, document, sum(trials), len(trials)))
            if any(value not in (0, 1) for value in trials):
                odd.add(name)
    leader = np.arange(len(samples))
    for places in _circles(samples):
        leader[places] = places[0]
        right = all(samples[place]["correct"] for place in places)
        document = numbers[str(samples[places[0]]["id"])]
        columns.setdefault(CIRCULAR, []).append((places[0], document, float(right), 1))
    found = {}
    for name, rows in columns.items():
        place, document, total, count = np.array(rows, dtype=np.float64).T
        found[name] = Trials(
            place.astype(np.int64), document.astype(np.int64), total, count, name not in odd, bool((count == 1).all()),
            leader if name == CIRCULAR else None,
        )  # fmt: skip
    return found


def _circles(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """Yields the places of the samples of each circle that is complete."""
    members: dict[tuple[str, int], list[int]] = {}
    sizes: dict[tuple[str, int], int] = {}
    for place, sample in enumerate(samples):
        if sample.get("circle"):
            name, size = sample["circle"]
            key = name, int(sample.get("repeat", 0))
            members.setdefault(key, []).append(place)
            sizes[key] = size
    yield from (places for key, places in members.items() if len(places) == sizes[key])
