"""Which beginnings of prompts are worth keeping, because a request that waits begins with the same tokens.

A prompt can be forked at the ends of its chunks: at every whole chunk and at its last token but one, where decoding
begins. A point's key stands for all tokens up to it and one more: the MTP head has read that one too.
"""

import collections
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen35_jax.inference.memory import Snapshot
from qwen35_jax.inference.prompts import media_of

MOST_KEPT = 16
"""Snapshots that are kept at once; each holds the DeltaNet states of one sequence."""


@dataclass(frozen=True)
class Point:
    """A place where a prompt can be forked: so many tokens, and what stands for them."""

    length: int
    key: bytes


def points_of(prompt: Sequence[int], chunk: int, *, last: int, kind: str) -> list[Point]:
    """Returns the points of a prompt, the shortest first.

    Images and videos are part of a key from the place on where they stand.

    Args:
      last: no point lies beyond; it is a point itself.
      kind: requests of another kind are read by another program and share nothing with this one.
    """
    tokens, digest, points, done = np.asarray(prompt, np.int32), hashlib.blake2b(kind.encode()), [], 0
    media = media_of(prompt)

    def content(start: int, stop: int) -> bytes:
        return tokens[start:stop].tobytes() + (b"" if media is None else media.content(start, stop))

    for length in dict.fromkeys((*range(chunk, last, chunk), last)):
        if length:
            digest.update(content(done, length))
            ahead = digest.copy()
            ahead.update(content(length, length + 1))
            points.append(Point(length, ahead.digest()))
            done = length
    return points


@dataclass(frozen=True)
class Prefix:
    """A beginning that is kept: its snapshot, and its pages in one data shard, which it owns too."""

    point: Point
    shard: int
    snapshot: Snapshot
    pages: list[int]


class Prefixes:
    """Counts who waits with which beginnings, and keeps the snapshots that they need."""

    def __init__(self):
        self._waiting: collections.Counter[bytes] = collections.Counter()
        self._kept: dict[tuple[int, bytes], Prefix] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def wait(self, points: Sequence[Point]) -> None:
        """A request with these points waits."""
        self._waiting.update(point.key for point in points)

    def leave(self, points: Sequence[Point]) -> list[Prefix]:
        """It waits no longer; returns the prefixes that nobody needs any more."""
        self._waiting.subtract(point.key for point in points)
        gone = {point.key for point in points if self._waiting[point.key] <= 0}
        for key in gone:
            del self._waiting[key]
        return [self._kept.pop(place) for place in list(self._kept) if place[1] in gone]

    def find(self, points: Sequence[Point], shard: int) -> Prefix | None:
        """Returns the longest prefix of a shard that a request can begin with."""
        places = ((shard, point.key) for point in reversed(points))
        return next((self._kept[place] for place in places if place in self._kept), None)

    def is_wanted(self, points: Sequence[Point], length: int, shard: int) -> bool:
        """Whether a request that has read ``length`` tokens is at a point where one that waits leaves its way."""
        number = next((i for i, point in enumerate(points) if point.length == length), None)
        if number is None or (shard, points[number].key) in self._kept:
            return False
        after = self._waiting[points[number + 1].key] if number + 1 < len(points) else 0
        return self._waiting[points[number].key] > after

    def keep(self, prefix: Prefix) -> list[Prefix]:
        """Keeps a prefix; returns those that had to go for it."""
        self._kept[prefix.shard, prefix.point.key] = prefix
        oldest = list(self._kept)[: max(len(self._kept) - MOST_KEPT, 0)]
        return [self._kept.pop(place) for place in oldest]

    def drop_oldest(self, shard: int) -> Prefix | None:
        """Gives up the prefix of a shard that was kept first; None if there is none."""
        place = next((place for place in self._kept if place[0] == shard), None)
        return None if place is None else self._kept.pop(place)
