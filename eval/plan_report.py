"""What the plan of an evaluation says: how long its tasks take on the chips of a topology, line by line."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.expected import Expected
from eval.protocols import Mode
from qwen35_jax.planning.decode import Layout
from qwen35_jax.planning.decode_report import Work
from qwen35_jax.planning.ranges import Range


@dataclasses.dataclass(frozen=True)
class Load:
    """What one task asks of an engine.

    Attributes:
      prompt, response: mean tokens.
      limit: longest response in tokens.
      patches: mean of what a question shows; None for text.
      frame_patches: how many of them attend to each other; None where all do.
    """

    task: str
    mode: Mode
    documents: Expected
    repeats: int
    prompt: Expected
    response: Expected
    limit: int
    patches: Expected | None = None
    frame_patches: int | None = None

    @property
    def responses(self) -> int:
        """How many are written."""
        return self.documents.value * self.repeats

    @property
    def tokens(self) -> int:
        """How many all responses have."""
        return self.responses * self.response.value


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """The time of one task on one topology.

    Attributes:
      load: what is asked.
      layout: the engine on its chips.
      share: of the data sheets' rates that is reached.
    """

    load: Load
    layout: Layout
    share: float

    @property
    def held(self) -> int:
        """Tokens of a request that writes, on average over the steps.

        A response of length L is there for L steps and has L / 2 tokens in the middle of them. Over lengths that spread
        as an exponential distribution that makes their mean.
        """
        return self.load.prompt.value + self.load.response.value

    @property
    def writing(self) -> int:
        """Requests that write at once: as many as there are, as have a slot, and as have pages."""
        engine = self.layout.engine
        return min(engine.slots, self.load.responses, engine.cache_tokens // self.held)

    @property
    def step(self) -> Work:
        """What a chip does in a step while so many write."""
        return self._step(self.held * self.writing)

    @property
    def last_step(self) -> Work:
        """What it does while one response a chip is left, at half of the longest length."""
        return self._step((self.load.prompt.value + self.load.limit // 2) * self.layout.engine.shards)

    def _step(self, tokens: int) -> Work:
        """Returns what a chip does in a step while all requests together hold so many tokens.

        The program has a place for every slot, whether it writes or not.
        """
        return self.layout.step(max(round(tokens / self.layout.engine.slots), 1))

    @property
    def bound(self) -> str:
        """What limits a step: ``compute``, ``hbm`` or ``ici``."""
        seconds = self.step.seconds(self.layout.device)
        return max(seconds, key=seconds.__getitem__)

    @property
    def step_seconds(self) -> float:
        """Time of a step."""
        return self.step.roofline(self.layout.device) / self.share

    @property
    def last_step_seconds(self) -> float:
        """Time of one of the last steps."""
        return self.last_step.roofline(self.layout.device) / self.share

    @property
    def rate(self) -> float:
        """Tokens a second over all chips."""
        return self.writing / self.step_seconds

    @property
    def write_seconds(self) -> float:
        """Time in which all tokens are written at that rate."""
        return self.load.tokens / self.rate

    @property
    def chunks(self) -> int:
        """Chunks that a prompt is read in."""
        return -(-self.load.prompt.value // self.layout.engine.chunk)

    @property
    def chunk_seconds(self) -> float:
        """Time of one chunk in each data shard."""
        return self.layout.chunk(self.load.prompt.value).roofline(self.layout.device) / self.share

    @property
    def read_seconds(self) -> float:
        """Time in which all prompts are read."""
        return self.load.responses * self.chunks * self.chunk_seconds / self.layout.engine.shards

    @property
    def look_seconds(self) -> float:
        """Time of the tower for one question in each data shard; 0 for text."""
        if self.load.patches is None:
            return 0.0
        patches = self.load.patches.value
        work = self.layout.look(patches, self.load.frame_patches or patches)
        return work.roofline(self.layout.device) / self.share

    @property
    def see_seconds(self) -> float:
        """Time in which the tower reads all questions, each once."""
        return self.load.documents.value * self.look_seconds / self.layout.engine.shards

    @property
    def tail_seconds(self) -> float:
        """Time of the longest response, if it begins when all others are finished."""
        return self.load.limit * self.last_step_seconds

    @property
    def hours(self) -> Range:
        """Without and with the tail."""
        least = (self.write_seconds + self.read_seconds + self.see_seconds) / 3600
        return Range(least, least + self.tail_seconds / 3600)

    def to_json(self) -> dict[str, Any]:
        """Returns all figures as JSON values."""
        load = self.load
        names = (
            "held", "writing", "bound", "step_seconds", "last_step_seconds", "rate", "write_seconds", "chunks",
            "chunk_seconds", "read_seconds", "look_seconds", "see_seconds", "tail_seconds",
        )  # fmt: skip
        return {
            "task": load.task,
            "mode": load.mode,
            **{name: getattr(load, name)._asdict() for name in ("documents", "prompt", "response")},
            "patches": None if load.patches is None else load.patches._asdict(),
            **{name: getattr(load, name) for name in ("repeats", "responses", "tokens", "limit")},
            **{name: getattr(self, name) for name in names},
            "step_bytes": self.step.bytes,
            "hours": self.hours._asdict(),
        }


Plans = Mapping[tuple[str, Mode], Sequence[TaskPlan]]
"""Plans of tasks by topology and mode; the tasks of one list are written together."""


def to_text(plans: Plans, price: float | None) -> str:
    """Returns the arithmetic line by line."""
    lines: list[str] = []
    for (topology, mode), own in plans.items():
        layout = own[0].layout
        mesh = " ".join(f"{axis}={size}" for axis, size in layout.mesh.items() if size > 1)
        axes = f"{layout.num_devices} chips, {mesh}" if mesh else "one chip"
        lines.append(f"{topology} ({axes}), {mode}, {layout.engine.slots} slots:")
        for plan in own:
            lines += [f"  {plan.load.task}", *(f"    {line}" for line in _lines(plan))]
        lines += [f"  {line}" for line in _sum(own, price)]
    if any(size > 1 for own in plans.values() for axis, size in own[0].layout.mesh.items() if axis != "data"):
        lines.append("What chips of one model send each other is left out: `qwen35 plan` compiles, and counts it.")
    lines.append(
        "All hours are the least possible: peak rates of data sheets, nothing measured on a TPU, without starting, "
        "compiling, and opening images and videos."
    )
    return "\n".join(lines)


def _lines(plan: TaskPlan) -> Iterator[str]:
    load, layout = plan.load, plan.layout
    yield f"documents: {load.documents.value:,} ({load.documents.source})"
    repeats = f" x {load.repeats} repeats" if load.repeats > 1 else ""
    yield f"tokens a response: {load.response.value:,} ({load.response.source}), at most {load.limit:,}"
    yield f"tokens: {load.documents.value:,}{repeats} x {load.response.value:,} = {load.tokens:,}"
    yield f"tokens a prompt: {load.prompt.value:,} ({load.prompt.source})"
    weights = sum(layout.model_bytes()[part] for part in ("decoder", "head"))
    yield (
        f"a step: {plan.writing:,} responses write, each after {load.prompt.value:,} + {load.response.value:,} tokens "
        f"on average; {weights / 1e9:.2f} GB of weights + {(plan.step.bytes - weights) / 1e9:.2f} GB of states, keys "
        f"and values a chip; at least {plan.step_seconds * 1e3:.2f} ms, bound by {plan.bound}"
    )
    yield f"rate: {plan.writing:,} / {plan.step_seconds * 1e3:.2f} ms = {plan.rate:,.0f} tokens/s"
    yield f"writing: {load.tokens:,} / {plan.rate:,.0f} = {_hours(plan.write_seconds)}"
    yield (
        f"reading: {load.responses:,} x {plan.chunks} chunks x {plan.chunk_seconds * 1e3:.2f} ms / "
        f"{layout.engine.shards} at a time = {_hours(plan.read_seconds)}"
    )
    if load.patches is not None:
        yield f"patches a question: {load.patches.value:,} ({load.patches.source})"
        yield (
            f"seeing: {load.documents.value:,} x {plan.look_seconds * 1e3:.2f} ms of the tower / "
            f"{layout.engine.shards} at a time = {_hours(plan.see_seconds)}"
        )
    yield (
        f"tail: {load.limit:,} x {plan.last_step_seconds * 1e3:.2f} ms = {_hours(plan.tail_seconds)} more, if the "
        "longest response begins when the others are finished"
    )
    yield f"hours: {plan.hours.to_text('.3g')}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h"


def _together(plans: Sequence[TaskPlan]) -> Range:
    """Returns the hours of tasks that are written together: their tails coincide."""
    least = sum(plan.hours.low for plan in plans)
    return Range(least, least + max(plan.tail_seconds for plan in plans) / 3600)


def _sum(plans: Sequence[TaskPlan], price: float | None) -> Iterator[str]:
    chips, hours = plans[0].layout.num_devices, _together(plans)
    tokens = sum(plan.load.tokens for plan in plans)
    together = f"{tokens:,} tokens, {hours.to_text('.3g')} h x {chips} {'chip' if chips == 1 else 'chips'}"
    yield f"all: {together} = {hours.times(chips).to_text('.3g')} chip-hours"
    if price is not None:
        yield f"price: x {price:g} a chip-hour = {hours.times(chips * price).to_text(',.2f')}"


def to_json(plans: Plans, price: float | None) -> list[dict[str, Any]]:
    """Returns one entry for each topology and mode, with its tasks."""
    entries = []
    for (topology, mode), own in plans.items():
        chips, hours = own[0].layout.num_devices, _together(own)
        entry: dict[str, Any] = {
            "topology": topology, "chips": chips, "mesh": dict(own[0].layout.mesh), "mode": mode,
            "slots": own[0].layout.engine.slots, "share_of_peak": own[0].share,
            "tasks": [plan.to_json() for plan in own], "tokens": sum(plan.load.tokens for plan in own),
            "hours": hours._asdict(), "chip_hours": hours.times(chips)._asdict(),
        }  # fmt: skip
        if price is not None:
            entry["price_per_chip_hour"] = price
            entry["price"] = hours.times(chips * price)._asdict()
        entries.append(entry)
    return entries
