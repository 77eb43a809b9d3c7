"""An engine of slots: requests join and leave while others write, and none changes another's result.

``submit`` queues a request, ``step`` makes one call of the device, ``generate`` does both until all are finished. A
request stays in its slot until it ends. If the pages run out, the youngest request gives its pages back and is computed
again later, by the same programs on the same numbers, so that it comes out equal bit for bit.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen35_jax.distributed import to_host
from qwen35_jax.inference.pages import PagePool
from qwen35_jax.inference.slot_programs import Memory, Written, decode, prefill
from qwen35_jax.inference.slots import LENGTH, SlotRequest, Slots, admit, release
from qwen35_jax.model import Qwen35
from qwen35_jax.sharding import mesh_of


@dataclass
class Progress:
    """What a request has come to.

    Attributes:
      tokens: what it has written.
      model_logprobs, sampling_logprobs: of these tokens, by the model and by what they were drawn from.
      finish_reason: None while it runs.
    """

    request: SlotRequest
    tokens: list[int] = field(default_factory=list)
    model_logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class _Tenant:
    """A request in a slot: its pages, and how many of its tokens it has written in this slot so far."""

    number: int
    pages: list[int]
    written: int = 0


@dataclass
class SlotMetrics:
    """Counts since the engine was made."""

    prefilled_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    decode_steps: int = 0
    proposed_drafts: int = 0
    accepted_drafts: int = 0


class SlotEngine:
    """Runs requests in a fixed number of slots over pages that they share.

    Args:
      model: used as it is at each call, so a model in training can be sampled from.
      marks: ids of ``<think>`` and ``</think>``.
      slots: most requests at once.
      cache_tokens: tokens that all pages hold together, rounded up to whole pages.
      num_drafts: drafts of the MTP head a step; 0 decodes plainly.
      page_size: tokens of a page.
      chunk: tokens of a prompt that are read at once; whole pages.
      steps_per_call: most steps between two looks of the host.

    Raises:
      ValueError: a size that is out of range, or drafts without an MTP head.
    """

    def __init__(
        self,
        model: Qwen35,
        *,
        marks: tuple[int, int],
        slots: int,
        cache_tokens: int,
        num_drafts: int = 0,
        page_size: int = 64,
        chunk: int = 256,
        steps_per_call: int = 32,
    ):
        sizes = {"slots": slots, "cache_tokens": cache_tokens, "page_size": page_size, "chunk": chunk,
                 "steps_per_call": steps_per_call}  # fmt: skip
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size}; give at least 1.")
        if num_drafts < 0 or (num_drafts and model.mtp is None):
            raise ValueError(
                f"num_drafts={num_drafts}, but the model has no MTP head to draft with; give 0, or load a checkpoint "
                "that holds mtp.* tensors."
                if num_drafts > 0
                else f"num_drafts={num_drafts}; give 0 or more."
            )
        self.model, self.metrics = model, SlotMetrics()
        self._marks, self._num_drafts, self._chunk, self._most_steps = marks, num_drafts, chunk, steps_per_call
        text = model.config.text
        self._mesh = mesh_of(model.head_weight())
        num_pages = 1 + -(-cache_tokens // page_size)
        self._pool = PagePool(num_pages, page_size)
        self._slots = Slots.empty(slots, num_drafts, text.vocab_size)
        self._memory = Memory.empty(text, slots=slots, num_drafts=num_drafts, num_pages=num_pages,
                                    page_size=page_size, dtype=model.dtype)  # fmt: skip
        most_pages = self._pool.pages_for(text.max_position_embeddings)
        self._table = np.zeros((slots, min(num_pages - 1, most_pages)), np.int32)
        self._tenants: list[_Tenant | None] = [None] * slots
        self._waiting: collections.deque[int] = collections.deque()
        self._progress: dict[int, Progress] = {}
        self._next_number = 0

    @property
    def max_length(self) -> int:
        """Most tokens of one request, prompt and completion together."""
        return min(self._pool.capacity, self.model.config.text.max_position_embeddings)

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._waiting) or any(self._tenants)

    @property
    def num_free_slots(self) -> int:
        """Slots without a request."""
        return self._tenants.count(None)

    @property
    def num_free_pages(self) -> int:
        """Pages that no request owns."""
        return self._pool.num_free

    def check(self, request: SlotRequest) -> None:
        """Raises ``ValueError`` for a request that could never be finished."""
        vocabulary, prompt = self.model.config.text.vocab_size, request.prompt
        if not len(prompt):
            raise ValueError("the prompt has no tokens; a completion needs at least one to follow.")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(
                f"the prompt has token ids from {min(prompt)} to {max(prompt)}, but the model knows 0 to "
                f"{vocabulary - 1}; use the tokenizer of the checkpoint."
            )
        if request.limit < 1:
            raise ValueError(f"limit={request.limit}; give at least 1 new token.")
        if len(prompt) + request.limit > self.max_length:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens; with {request.limit} new ones it passes the {self.max_length} "
                "that the engine holds; shorten it, lower the limit, or give more cache_tokens."
            )

    def submit(self, request: SlotRequest) -> int:
        """Queues a request and returns its number.

        Raises:
          ValueError: as ``check`` does.
        """
        self.check(request)
        number, self._next_number = self._next_number, self._next_number + 1
        self._progress[number] = Progress(request)
        self._waiting.append(number)
        return number

    def abort(self, number: int) -> None:
        """Ends a request where it is and frees its slot; one that is finished or unknown stays as it is."""
        if number in self._waiting:
            self._waiting.remove(number)
        for slot, tenant in enumerate(self._tenants):
            if tenant is not None and tenant.number == number:
                self._slots = release(self._slots, slot)
                self._leave(slot)
        self._progress.pop(number, None)

    def generate(self, requests: Sequence[SlotRequest]) -> list[Progress]:
        """Finishes all requests and returns what they came to, in their order.

        Raises:
          ValueError: as ``check`` does, before anything is computed.
        """
        for request in requests:
            self.check(request)
        numbers, finished = [self.submit(request) for request in requests], {}
        while not all(number in finished for number in numbers):
            finished.update(self.step())
        return [finished[number] for number in numbers]

    def step(self) -> dict[int, Progress]:
        """Admits whom there is room for, makes one call of the device, and returns the requests that it finished."""
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            split = nnx.split(self.model)
            self._admit(split)
            steps = self._reserve()
            if not steps:
                return {}
            self._memory, self._slots, written = decode(
                *split, self._memory, self._slots, jnp.asarray(self._table), steps, bool(self._waiting),
                marks=self._marks, most_steps=self._most_steps,
            )  # fmt: skip
            return self._read(written, to_host(self._slots.stopped))

    def _admit(self, split: tuple) -> None:
        """Gives free slots to those who wait, in their order, as far as the pages reach."""
        while self._waiting and None in self._tenants:
            request = self._progress[self._waiting[0]].request
            pages = self._pool.take(self._pool.pages_for(len(request.prompt) + self._num_drafts + 1))
            if pages is None:
                return
            slot = self._tenants.index(None)
            tenant = self._tenants[slot] = _Tenant(self._waiting.popleft(), pages)
            self._write_row(slot, tenant)
            self._prefill(split, slot, request)
            self._slots = admit(self._slots, slot, request.row())

    def _prefill(self, split: tuple, slot: int, request: SlotRequest) -> None:
        """Reads all of a prompt but its last token, which the first window takes."""
        prompt, chunk = np.asarray(request.prompt, np.int32), self._chunk
        for start in range(0, max(len(prompt) - 1, 1), chunk):
            real = min(chunk, len(prompt) - 1 - start)
            ids, after = np.zeros((2, 1, chunk), np.int32)
            ids[0, :real], after[0, :real] = prompt[start : start + real], prompt[start + 1 : start + real + 1]
            segment_ids = (np.arange(chunk) < real).astype(np.int32)[None]
            self._memory, seen = prefill(
                *split, self._memory, self._slots.seen, np.array([slot], np.int32), ids, after, segment_ids,
                self._table[slot : slot + 1], np.array([start], np.int32),
            )  # fmt: skip
            self._slots = dataclasses.replace(self._slots, seen=seen)
            self.metrics.prefilled_tokens += real

    def _reserve(self) -> int:
        """Makes sure that every tenant has pages for the next call; returns its steps, 0 if nobody is there.

        The oldest comes first. Who finds no page takes them from the youngest, which waits again.
        """
        window = self._num_drafts + 1
        for tenant in sorted(filter(None, self._tenants), key=lambda tenant: tenant.number):
            if tenant not in self._tenants:
                continue
            request = self._progress[tenant.number].request
            most = min(tenant.written + self._most_steps * window, request.limit + self._num_drafts)
            needed = self._pool.pages_for(min(len(request.prompt) + most, self.max_length))
            while (missing := needed - len(tenant.pages)) > 0:
                more = self._pool.take(missing)
                if more is not None:
                    tenant.pages += more
                elif self._preempt_youngest() is tenant:
                    break
            else:
                self._write_row(self._tenants.index(tenant), tenant)
        return self._most_steps if any(self._tenants) else 0

    def _preempt_youngest(self) -> _Tenant:
        """Sends the youngest tenant back to wait; a tenant that is alone finds all the pages that it may need."""
        youngest = max(filter(None, self._tenants), key=lambda tenant: tenant.number)
        slot = self._tenants.index(youngest)
        self._slots = release(self._slots, slot)
        self._leave(slot)
        self._waiting.appendleft(youngest.number)
        self.metrics.preemptions += 1
        return youngest

    def _write_row(self, slot: int, tenant: _Tenant) -> None:
        self._table[slot] = 0
        self._table[slot, : len(tenant.pages)] = tenant.pages

    def _leave(self, slot: int) -> None:
        tenant = self._tenants[slot]
        assert tenant is not None
        self._pool.give_back(tenant.pages)
        self._tenants[slot], self._table[slot] = None, 0

    def _read(self, written: Written, stopped: np.ndarray) -> dict[int, Progress]:
        """Takes over what a call wrote; returns the requests that it finished."""
        finished = {}
        self.metrics.decode_steps += int(to_host(written.steps))
        self.metrics.proposed_drafts += int(to_host(written.proposed).sum())
        self.metrics.accepted_drafts += int(to_host(written.accepted).sum())
        counts, tokens = to_host(written.counts), to_host(written.tokens)
        model_logprobs, sampling_logprobs = to_host(written.model_logprobs), to_host(written.sampling_logprobs)
        for slot, tenant in enumerate(self._tenants):
            if tenant is None:
                continue
            progress, count = self._progress[tenant.number], int(counts[slot])
            # A request that was computed again has written some of its tokens before.
            new = slice(max(len(progress.tokens) - tenant.written, 0), count)
            progress.tokens += tokens[slot, new].tolist()
            progress.model_logprobs += model_logprobs[slot, new].tolist()
            progress.sampling_logprobs += sampling_logprobs[slot, new].tolist()
            tenant.written += count
            self.metrics.generated_tokens += count
            if stopped[slot]:
                progress.finish_reason = "length" if stopped[slot] == LENGTH else "stop"
                finished[tenant.number] = self._progress.pop(tenant.number)
                self._leave(slot)
        return finished
