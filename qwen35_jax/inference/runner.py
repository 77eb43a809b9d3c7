"""Runs the programs of an engine over its slots, and hands what they write to the requests' transcripts.

A call of ``decode`` is dispatched before the one before it is read: the device works while the host looks at tokens.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen35_jax.config import TextConfig
from qwen35_jax.distributed import to_host
from qwen35_jax.inference.decode import Order, Program, Written, decode
from qwen35_jax.inference.distribution import Masks
from qwen35_jax.inference.memory import Memory, fork, take_snapshot
from qwen35_jax.inference.metrics import Metrics
from qwen35_jax.inference.prefill import prefill
from qwen35_jax.inference.reading import Eye, Kind, chunk_of, kind_of
from qwen35_jax.inference.requests import FinishReason, TokenLogprobs, TokenScores
from qwen35_jax.inference.scheduler import NoPagesError, Request, Scheduler, Tenant
from qwen35_jax.inference.sizes import EngineSizes
from qwen35_jax.inference.slots import LENGTH, RUNNING, Slots, admit, release
from qwen35_jax.model import Qwen35
from qwen35_jax.sharding import mesh_of

T = TypeVar("T")

# Most chunks of prompts in a step, so that somebody can take a request back in between: if nobody writes, and if
# somebody waits for their end.
_CHUNKS_ALONE, _CHUNKS_BESIDE_WRITERS = 64, 4
# Most steps of a call while prompts are being read.
_STEPS_BESIDE_READERS = 8


@dataclass(frozen=True)
class News:
    """What a step brought a request: new tokens in its transcript, its end, or its scores."""

    request: Request
    reason: FinishReason | None = None
    closed_by_budget: bool = False
    scores: TokenScores | None = None


@dataclass(frozen=True)
class _Call:
    """A call that is under way: who wrote in each slot, and how many tokens each may have written at most."""

    written: Written
    writers: dict[int, Tenant]
    promised: dict[Tenant, int]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def make_memory(text: TextConfig, sizes: EngineSizes, dtype: np.dtype) -> tuple[Memory, Slots]:
    """Makes the memory and the slots of an engine that nobody has used."""
    memory = Memory.empty(
        text, slots=sizes.slots, num_drafts=sizes.num_drafts, num_pages=sizes.shards * sizes.num_pages,
        page_size=sizes.page_size, dtype=dtype,
    )  # fmt: skip
    return memory, Slots.empty(sizes.slots, sizes.num_drafts, text.vocab_size)


class Runner:
    """The device's side of an engine.

    Args:
      model: used as it is at each call.
      marks: ids of ``<think>`` and ``</think>``.
    """

    def __init__(self, model: Qwen35, sizes: EngineSizes, marks: tuple[int, int]):
        self.model, self.sizes, self.metrics = model, sizes, Metrics()
        self._program = Program(marks, sizes.steps_per_call, sizes.draft_vocabulary)
        self._mesh = mesh_of(model.head_weight())
        # Arrays of several processes cannot be named anew.
        self._is_local = self._mesh is not None and not self._mesh.is_multi_process
        text = model.config.text
        with self._on_mesh():
            memory, slots = make_memory(text, sizes, model.dtype)
        self._memory: Memory = memory
        self._slots: Slots = slots
        self._places = [[x.sharding for x in jax.tree.leaves(tree)] for tree in (memory, slots)]
        self.scheduler = Scheduler(
            slots=sizes.slots, shards=sizes.shards, num_pages=sizes.num_pages, page_size=sizes.page_size,
            most_pages=sizes.most_pages, window=sizes.num_drafts + 1, most_vectors=sizes.most_vectors,
        )  # fmt: skip
        self._eye = Eye(sizes, self.scheduler.gallery, self.metrics, self._mesh)
        words = -(-text.vocab_size // 32)
        self._no_masks = np.zeros(sizes.slots, bool), np.zeros((sizes.slots, words), np.int32)
        self._call: _Call | None = None

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.scheduler.waiting) or any(self.scheduler.tenants)

    def remove(self, number: int) -> Request | None:
        """Takes a request back, wherever it is; None if it is not here."""
        for tenant in filter(None, self.scheduler.tenants):
            if tenant.request.number == number:
                with self._on_mesh():
                    self._leave(tenant)
                return tenant.request
        return self.scheduler.withdraw(number)

    def step(self) -> list[News]:
        """Reads chunks of prompts, dispatches a call that writes, and returns what the call before it has written."""
        with self._on_mesh():
            split, news = nnx.split(self.model), []
            if any(tenant.request.grammar is not None for tenant in self.scheduler.writers):
                # What may come next depends on the token before.
                news += self._take_call()
            news += self._read_prompts(split)
            steps = None
            while steps is None:
                try:
                    steps = self.scheduler.reserve(self._most_steps())
                except NoPagesError as lack:
                    news += self._make_room(*lack.args)
            before = self._call
            self._call = self._dispatch(split, steps) if steps else None
            return news + self._take(before)

    def _keep(self, *, memory: Memory | None = None, slots: Slots | None = None) -> None:
        """Takes over what a program returned.

        JAX describes the place of a result now so, now so, and would compile the next program for each description.
        Naming the place as it was at first copies nothing.
        """
        if memory is not None:
            self._memory = self._placed(memory, self._places[0])
        if slots is not None:
            self._slots = self._placed(slots, self._places[1])

    def _placed(self, tree: T, places: list[jax.sharding.Sharding]) -> T:
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, jax.device_put(leaves, places)) if self._is_local else tree

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _most_steps(self) -> int:
        if any(tenant.request.grammar is not None for tenant in self.scheduler.writers):
            return 1
        most = self.sizes.steps_per_call
        return min(most, _STEPS_BESIDE_READERS) if any(self.scheduler.readers) else most

    def _make_room(self, shard: int) -> list[News]:
        """Frees pages of a shard: those that the call under way may have freed, or those of somebody who must go."""
        if self._call is not None:
            return self._take_call()
        youngest = self.scheduler.make_room(shard)
        if youngest is not None:
            self._keep(slots=release(self._slots, youngest.slot))
            self.metrics.preemptions += 1
        return []

    def _leave(self, tenant: Tenant) -> None:
        if tenant.writes:
            self._keep(slots=release(self._slots, tenant.slot))
        self.scheduler.leave(tenant)

    def _read_prompts(self, split: tuple) -> list[News]:
        """Reads some chunks of the prompts that have a seat, fewer if somebody is writing."""
        news = []
        for _ in range(_CHUNKS_BESIDE_WRITERS if self.scheduler.writers else _CHUNKS_ALONE):
            for tenant in self.scheduler.seat():
                self._begin(tenant)
            readers = sorted(filter(None, self.scheduler.readers), key=lambda tenant: tenant.request.number)
            if not readers:
                break
            # One program a call: whoever needs the same as the oldest comes along.
            kind = kind_of(readers[0], self.sizes)
            readers = [tenant for tenant in readers if kind_of(tenant, self.sizes) == kind]
            self._read_chunk(split, readers, kind)
            news += [News(tenant.request, scores=self._scores(tenant)) for tenant in readers if self._arrive(tenant)]
        return news

    def _begin(self, tenant: Tenant) -> None:
        """Lets a tenant begin with what another one has read."""
        prefix = tenant.begins_with
        if prefix is None:
            return
        length, size = prefix.point.length, self.sizes.page_size
        source, target = (prefix.pages[length // size], tenant.pages[length // size]) if length % size else (0, 0)
        memory, seen = fork(self._memory, self._slots.seen, prefix.snapshot, np.array([tenant.slot], np.int32),
                                  tenant.shard, source, target)  # fmt: skip
        self._keep(memory=memory, slots=dataclasses.replace(self._slots, seen=seen))
        self._advance(tenant, length)
        self.metrics.forks += 1
        if tenant.read == tenant.to_read:
            self._admit(tenant)

    def _read_chunk(self, split: tuple, readers: list[Tenant], kind: Kind) -> None:
        chunk = chunk_of(readers, kind.size, rows=self.sizes.shards, table=self.scheduler.table)
        vision = self._eye.see(self.model, readers, kind.size) if kind.sees else None
        memory, seen, scores = prefill(*split, self._memory, self._slots.seen, chunk, vision, scored=kind.scored)
        self._keep(memory=memory, slots=dataclasses.replace(self._slots, seen=seen))
        for tenant in readers:
            real = min(kind.size, tenant.to_read - tenant.read)
            self._advance(tenant, tenant.read + real)
            self.metrics.prefilled_tokens += real
            if kind.scored:
                tenant.scores.append((scores, real))

    def _advance(self, tenant: Tenant, read: int) -> None:
        tenant.read = read
        if not tenant.looks:
            tenant.features = None

    def _arrive(self, tenant: Tenant) -> bool:
        """Keeps what others need of what a tenant has read; returns whether it is a text that is scored by now."""
        points = tenant.request.points
        if self.scheduler.prefixes.is_wanted(points, tenant.read, tenant.shard):
            point = next(point for point in points if point.length == tenant.read)
            snapshot = take_snapshot(self._memory, self._slots.seen, np.array([tenant.slot], np.int32))
            self.scheduler.keep_prefix(tenant, point, snapshot)
        if tenant.read < tenant.to_read:
            return False
        if tenant.request.row is None:
            self.scheduler.leave(tenant)
            return True
        self._admit(tenant)
        return False

    def _scores(self, tenant: Tenant) -> TokenScores:
        """Returns the scores of the tokens that a tenant has read itself, the first one's left out."""
        parts = ([to_host(x)[tenant.shard, :real] for x in scores] for scores, real in tenant.scores)
        return TokenScores(*map(np.concatenate, zip(*parts, strict=True)))

    def _admit(self, tenant: Tenant) -> None:
        """Lets a tenant write, whose prompt is read."""
        assert tenant.request.row is not None
        self._keep(slots=admit(self._slots, tenant.slot, tenant.request.row))
        self.scheduler.readers[tenant.shard] = None
        tenant.writes = True

    def _dispatch(self, split: tuple, steps: int) -> _Call:
        writers = {tenant.slot: tenant for tenant in self.scheduler.writers}
        running = np.isin(np.arange(self.sizes.slots), list(writers))
        arrays = self.scheduler.table, running, *self._masks(writers)
        table, running, masked, bits = (jnp.array(array) for array in arrays)
        order = Order(table, steps, running, bool(self.scheduler.waiting), Masks(masked, bits))
        memory, slots, written = decode(*split, self._memory, self._slots, order, self._program)
        self._keep(memory=memory, slots=slots)
        self.metrics.decode_calls += 1
        # What the call under way may add to a tenant is promised besides.
        before = {} if self._call is None else self._call.promised
        promised = {tenant: tenant.promised - before.get(tenant, 0) for tenant in writers.values()}
        return _Call(written, writers, promised)

    def _masks(self, writers: dict[int, Tenant]) -> tuple[np.ndarray, np.ndarray]:
        constrained = {slot: tenant for slot, tenant in writers.items() if tenant.request.grammar is not None}
        if not constrained:
            return self._no_masks
        masked, masks = (array.copy() for array in self._no_masks)
        for slot, tenant in constrained.items():
            grammar, transcript = tenant.request.grammar, tenant.request.transcript
            assert grammar is not None and transcript is not None
            masked[slot] = True
            if tenant.written < len(transcript.tokens):
                # Computed again after a preemption; the grammar is further on.
                word, bit = divmod(transcript.tokens[tenant.written], 32)
                masks[slot, word] = np.array(1 << bit, np.uint32).view(np.int32)
            else:
                masks[slot] = grammar.mask()
        return masked, masks

    def _take_call(self) -> list[News]:
        call, self._call = self._call, None
        return self._take(call)

    def _take(self, call: _Call | None) -> list[News]:
        """Waits for a call and takes over what it wrote, but for tenants that have left since."""
        if call is None:
            return []
        here = {slot: tenant for slot, tenant in call.writers.items() if self.scheduler.tenants[slot] is tenant}
        rows = (tenant.request.row for tenant in here.values())
        tells_top = any(row is not None and row["tells_top"] for row in rows)
        names = [field.name for field in dataclasses.fields(Written)]
        names = [name for name in names if tells_top or not name.startswith("top_")]
        written = {name: to_host(getattr(call.written, name)) for name in names}
        steps = int(written["steps"])
        self.metrics.decode_steps += steps
        lengths = [0] * self.sizes.slots
        for slot, tenant in here.items():
            lengths[slot] = len(tenant.request.prompt) + tenant.written
        self.metrics.count_drafts(written["proposed"], written["accepted"], written["thinking"], lengths)
        return [news for slot, tenant in here.items() if (news := self._follow(call, slot, tenant, written))]

    def _follow(self, call: _Call, slot: int, tenant: Tenant, written: dict[str, np.ndarray]) -> News | None:
        """Gives a tenant's new tokens to its transcript, up to the one that ends the completion."""
        count, stopped = int(written["counts"][slot]), int(written["stopped"][slot])
        closed = bool(written["closed"][slot] >= 0)
        request, transcript = tenant.request, tenant.request.transcript
        assert transcript is not None
        # A tenant that was preempted writes some tokens again.
        known = max(len(transcript.tokens) - tenant.written, 0)
        tenant.promised -= call.promised[tenant]
        tenant.written += count
        reason, new = None, 0
        for token, logprobs in self._tokens(written, slot, known, count, tells=transcript.tells_logprobs):
            reason, new = transcript.push(token, logprobs), new + 1
            if reason is None and request.grammar is not None:
                request.grammar.accept(token)
                reason = "stop" if request.grammar.finished else None
            if reason is not None:
                break
        self.metrics.generated_tokens += new
        if reason is None and stopped != RUNNING:
            reason = "length" if stopped == LENGTH else "budget" if closed else "stop"
        if reason is not None:
            self._leave(tenant)
        return News(request, reason, closed) if new or reason else None

    def _tokens(
        self, written: dict[str, np.ndarray], slot: int, start: int, stop: int, *, tells: bool
    ) -> Iterator[tuple[int, TokenLogprobs | None]]:
        """Yields tokens of a slot with their log-probabilities, if these are told."""
        for i in range(start, stop):
            logprobs = None
            if tells:
                top = ()
                if "top_ids" in written:
                    ids, values = written["top_ids"][slot, i].tolist(), written["top_logprobs"][slot, i].tolist()
                    top = tuple(zip(ids, values, strict=True))
                model, sampling = (float(written[name][slot, i]) for name in ("model_logprobs", "sampling_logprobs"))
                logprobs = TokenLogprobs(model, sampling, top)
            yield int(written["tokens"][slot, i]), logprobs
