"""Who sits in which slot, with which pages, and who waits: the host's side of an engine, without any array of a device.

Slots and pages belong to data shards: shard ``d`` has the slots ``[d * n, (d + 1) * n)`` and pages of its own. Each
shard reads one prompt at a time. Requests are seated in the order in which they came.
"""

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen35_jax.inference.features import Gallery
from qwen35_jax.inference.memory import Snapshot
from qwen35_jax.inference.pages import PagePool
from qwen35_jax.inference.prefixes import Point, Prefix, Prefixes
from qwen35_jax.inference.prompts import Media, media_of
from qwen35_jax.inference.requests import Grammar
from qwen35_jax.inference.transcript import Transcript
from qwen35_jax.vision.tower import VisionFeatures


@dataclass(eq=False)
class Request:
    """A prompt and how it is to be completed, or a text that is to be scored.

    Attributes:
      row: its row of ``Slots``; None for a text that is scored.
      limit: most new tokens; 0 for a text that is scored.
      points: where its prompt can be forked.
      seed: of the random choices.
    """

    number: int
    prompt: Sequence[int]
    limit: int
    points: list[Point]
    seed: int = 0
    row: dict[str, Any] | None = None
    transcript: Transcript | None = None
    grammar: Grammar | None = None

    @property
    def media(self) -> Media | None:
        """The images and videos of its prompt."""
        return media_of(self.prompt)


@dataclass(eq=False)
class Tenant:
    """A request in a slot.

    Attributes:
      begins_with: the prefix that it is forked from; None if it reads its prompt from the start.
      read: tokens of its prompt in the memory.
      writes: whether all of its prompt is read.
      written: tokens that it has written in this slot, as far as the host knows.
      promised: most tokens that calls under way may add.
      scores: what a scored text has come to, in parts.
      features: what the tower made of its images and videos, while it reads them.
    """

    request: Request
    slot: int
    shard: int
    pages: list[int]
    begins_with: Prefix | None = None
    read: int = 0
    writes: bool = False
    written: int = 0
    promised: int = 0
    scores: list[Any] = field(default_factory=list)
    features: VisionFeatures | None = None

    @property
    def to_read(self) -> int:
        """Tokens of the prompt that prefill reads; the first window takes the last one."""
        return len(self.request.prompt) - 1

    @property
    def looks(self) -> bool:
        """Whether images or videos are still to be read."""
        media = self.request.media
        return media is not None and self.read <= media.last


class NoPagesError(Exception):
    """The pages of a shard, which is the argument, do not suffice."""


class Scheduler:
    """Seats requests and gives them pages.

    Args:
      slots: of all data shards together.
      num_pages: pages of one data shard, page 0 included.
      most_pages: places of a slot's row in the page table.
      window: tokens of a window, the newest one and its drafts.
      most_vectors: of images and videos that are kept for requests.
    """

    def __init__(self, *, slots: int, shards: int, num_pages: int, page_size: int, most_pages: int, window: int,
                 most_vectors: int = 0):  # fmt: skip
        self.pools = [PagePool(num_pages, page_size) for _ in range(shards)]
        self.prefixes, self.gallery = Prefixes(), Gallery(most_vectors)
        self.waiting: collections.deque[Request] = collections.deque()
        self.tenants: list[Tenant | None] = [None] * slots
        self.readers: list[Tenant | None] = [None] * shards
        self.table = np.zeros((slots, most_pages), np.int32)
        self._window = window

    @property
    def writers(self) -> list[Tenant]:
        """Tenants that write, the oldest request first."""
        writers = (tenant for tenant in self.tenants if tenant is not None and tenant.writes)
        return sorted(writers, key=lambda tenant: tenant.request.number)

    def wait(self, request: Request, *, first: bool = False) -> None:
        """Lets a request wait, behind all others or before them."""
        (self.waiting.appendleft if first else self.waiting.append)(request)
        self.prefixes.wait(request.points)
        if request.media is not None:
            self.gallery.expect(request.media)

    def withdraw(self, number: int) -> Request | None:
        """Takes a request out of the queue; None if it does not wait."""
        request = next((request for request in self.waiting if request.number == number), None)
        if request is not None:
            self.waiting.remove(request)
            self._release(self.prefixes.leave(request.points))
            if request.media is not None:
                self.gallery.dismiss(request.media)
        return request

    def seat(self) -> Iterator[Tenant]:
        """Gives idle readers the requests that wait, in their order, as far as slots and pages reach."""
        while self.waiting:
            request = self.waiting[0]
            tenant = next(filter(None, (self._take_seat(request, shard) for shard in self._preferred(request))), None)
            if tenant is None:
                return
            self.waiting.popleft()
            self.tenants[tenant.slot] = self.readers[tenant.shard] = tenant
            self._write_row(tenant)
            yield tenant
            # It holds what it begins with; the others' needs are counted without it.
            self._release(self.prefixes.leave(request.points))

    def _preferred(self, request: Request) -> list[int]:
        """Returns shards with an idle reader: those first that have read most of the prompt or have most room."""

        def benefit(shard: int) -> tuple[int, int]:
            prefix = self.prefixes.find(request.points, shard)
            return (0 if prefix is None else prefix.point.length), self.pools[shard].num_free

        idle = [shard for shard, reader in enumerate(self.readers) if reader is None]
        return sorted(idle, key=benefit, reverse=True)

    def _take_seat(self, request: Request, shard: int) -> Tenant | None:
        per_shard = len(self.tenants) // len(self.pools)
        own = range(shard * per_shard, (shard + 1) * per_shard)
        slot = next((slot for slot in own if self.tenants[slot] is None), None)
        if slot is None:
            return None
        pool, spare = self.pools[shard], sum(self.tenants[slot] is not None for slot in own)
        while True:
            prefix = self.prefixes.find(request.points, shard)
            shared = [] if prefix is None else prefix.pages[: prefix.point.length // pool.page_size]
            needed = pool.pages_for(len(request.prompt) + min(self._window, request.limit)) - len(shared)
            # A page for every tenant is left free: who comes in should not have to leave at once.
            if needed + spare <= pool.num_free:
                pages = pool.take(needed)
                assert pages is not None
                pool.share(shared)
                return Tenant(request, slot, shard, [*shared, *pages], begins_with=prefix)
            if not self.drop_prefix(shard):
                return None

    def keep_prefix(self, tenant: Tenant, point: Point, snapshot: Snapshot) -> None:
        """Keeps what a tenant has read so far, for others that begin alike."""
        pool = self.pools[tenant.shard]
        pages = tenant.pages[: pool.pages_for(point.length)]
        pool.share(pages)
        self._release(self.prefixes.keep(Prefix(point, tenant.shard, snapshot, pages)))

    def drop_prefix(self, shard: int) -> bool:
        """Gives up a prefix of a shard for its pages; returns whether there was one."""
        prefix = self.prefixes.drop_oldest(shard)
        self._release([prefix] if prefix else [])
        return prefix is not None

    def _release(self, prefixes: Sequence[Prefix]) -> None:
        for prefix in prefixes:
            self.pools[prefix.shard].give_back(prefix.pages)

    def reserve(self, most_steps: int) -> int:
        """Gives all writers pages for as many steps as the pages allow, ``most_steps`` at most; 0 if nobody can write.

        Raises:
          NoPagesError: the pages of a shard do not suffice for one step.
        """
        writers = [tenant for tenant in self.writers if tenant.written + tenant.promised < tenant.request.limit]
        while True:
            needs = {tenant: self._missing(tenant, most_steps) for tenant in writers}
            needed: collections.Counter[int] = collections.Counter()
            for tenant, missing in needs.items():
                needed[tenant.shard] += missing
            short = [shard for shard, pages in needed.items() if pages > self.pools[shard].num_free]
            if not short:
                break
            if most_steps == 1:
                raise NoPagesError(min(short))
            most_steps //= 2
        for tenant, missing in needs.items():
            more = self.pools[tenant.shard].take(missing)
            assert more is not None, "the sum was free"
            tenant.pages += more
            tenant.promised += self._most_new(tenant, most_steps)
            self._write_row(tenant)
        return most_steps if writers else 0

    def _most_new(self, tenant: Tenant, steps: int) -> int:
        return min(steps * self._window, tenant.request.limit - tenant.written - tenant.promised)

    def _missing(self, tenant: Tenant, steps: int) -> int:
        """Returns how many pages a tenant lacks for so many steps; what lies beyond its limit is never read."""
        length = len(tenant.request.prompt) + tenant.written + tenant.promised + self._most_new(tenant, steps)
        return max(self.pools[tenant.shard].pages_for(length) - len(tenant.pages), 0)

    def make_room(self, shard: int) -> Tenant | None:
        """Gives up a prefix of a shard, or else its youngest tenant, which waits again and is returned."""
        if self.drop_prefix(shard):
            return None
        own = (tenant for tenant in self.tenants if tenant is not None and tenant.shard == shard)
        youngest = max(own, key=lambda tenant: tenant.request.number)
        # It waits before it leaves, so that what the tower made of its images stays.
        self.wait(youngest.request, first=True)
        self.leave(youngest)
        return youngest

    def leave(self, tenant: Tenant) -> None:
        """Frees a tenant's slot and gives its pages back."""
        if self.readers[tenant.shard] is tenant:
            self.readers[tenant.shard] = None
        if tenant.request.media is not None:
            self.gallery.dismiss(tenant.request.media)
        self.pools[tenant.shard].give_back(tenant.pages)
        self.tenants[tenant.slot], self.table[tenant.slot] = None, 0

    def _write_row(self, tenant: Tenant) -> None:
        self.table[tenant.slot] = 0
        self.table[tenant.slot, : len(tenant.pages)] = tenant.pages
