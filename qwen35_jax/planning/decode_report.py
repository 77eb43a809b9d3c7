"""What the plan of an engine says: whether it fits, how many requests it holds, and how fast it can be."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qwen35_jax.inference.sizes import EngineSizes
from qwen35_jax.planning.devices import Device
from qwen35_jax.planning.hlo import Collective
from qwen35_jax.planning.ranges import Range

_GIB = 2**30


@dataclass(frozen=True)
class Work:
    """What one device does in one run of a program: FLOPs, bytes through its memory, and what it sends."""

    flops: float
    bytes: float
    collectives: tuple[Collective, ...] = ()

    def seconds(self, device: Device) -> dict[str, float]:
        """Returns the least time that each resource needs: ``compute``, ``hbm`` and ``ici``."""
        return {
            "compute": self.flops / device.peak_flops,
            "hbm": self.bytes / device.hbm_bytes_per_second,
            "ici": sum(collective.bytes for collective in self.collectives) / device.ici_bytes_per_second,
        }

    def roofline(self, device: Device) -> float:
        """Returns the time at the peak of the busiest resource."""
        return max(self.seconds(device).values())


@dataclass(frozen=True)
class Sight:
    """An image or a video of one request: the tower runs over it once, then its tokens are read chunk by chunk.

    Attributes:
      frames: 1 for an image.
      tokens: of the prompt; those of a video with the times and marks of its frames.
      tower, chunk: what one device does in one run of the tower, and for one chunk.
    """

    kind: Literal["image", "video"]
    frames: int
    patches: int
    tokens: int
    tower: Work
    chunk: Work
    num_chunks: int

    def seconds(self, device: Device) -> tuple[float, float]:
        """Returns the least time of the tower, and of all chunks."""
        return self.tower.roofline(device), self.num_chunks * self.chunk.roofline(device)


@dataclass(frozen=True)
class DecodePlan:
    """What the compiler and the data sheets say about an engine. Bytes are those of one device.

    Attributes:
      mesh: size of each mesh axis.
      engine: the sizes that were compiled, which the engine chooses by itself.
      length: tokens of a request.
      max_length: positions that the model knows.
      compiles: whether the compiler finds room for the programs.
      hbm: ``weights``, ``states``, ``pages``, ``temporaries``, ``peak`` and ``capacity``; with images also
        ``features``.
      page_bytes: of one page in all layers.
      half, full: a decode step with all requests at half and at full length.
      chunk: a chunk of a prompt in each data shard.
      sights: the largest image and video, one in each data shard; none for text alone.
    """

    topology: str
    device: Device
    num_devices: int
    mesh: Mapping[str, int]
    engine: EngineSizes
    length: int
    max_length: int
    compiles: bool
    hbm: dict[str, int]
    page_bytes: int
    half: Work
    full: Work
    chunk: Work
    sights: tuple[Sight, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether both programs fit and one request can reach its length."""
        return self.compiles and self.requests_at(self.engine.num_pages - 1) > 0

    @property
    def most_pages(self) -> int:
        """Pages of a data shard, page 0 left out, that would fill the memory beside everything else."""
        spare = (self.hbm["capacity"] - self.hbm["peak"]) // self.page_bytes
        most = self.engine.slots // self.engine.shards * -(-self.max_length // self.engine.page_size)
        return min(max(self.engine.num_pages - 1 + spare, 0), most)

    @property
    def most_cache_tokens(self) -> int:
        """Tokens that the pages of all shards hold at most."""
        return self.engine.shards * self.most_pages * self.engine.page_size

    def requests_at(self, pages: int) -> int:
        """Returns how many requests of the full length so many pages of each data shard hold, over all shards."""
        return self.engine.shards * (pages // -(-self.length // self.engine.page_size))

    @property
    def writing(self) -> int:
        """Requests of the full length that write at once: as many as have a slot and pages."""
        return min(self.engine.slots, self.requests_at(self.engine.num_pages - 1))

    @property
    def tokens_per_second(self) -> Range:
        """Tokens over all devices: at full length without an accepted draft, to half length with all accepted."""
        slow, fast = (self.writing / work.roofline(self.device) for work in (self.full, self.half))
        return Range(slow, fast * (self.engine.num_drafts + 1))

    @property
    def limits(self) -> str:
        """What limits a decode step: ``memory`` where it does not fit, else ``compute``, ``hbm`` or ``ici``."""
        seconds = self.full.seconds(self.device)
        return max(seconds, key=seconds.__getitem__) if self.fits else "memory"

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON values; without times where it does not fit."""
        sizes = self.engine
        report: dict[str, Any] = {
            "topology": self.topology,
            "num_devices": self.num_devices,
            "mesh": dict(self.mesh),
            "fits": self.fits,
            "hbm": self.hbm,
            "free_bytes": self.hbm["capacity"] - self.hbm["peak"],
            "limits": self.limits,
            "engine": asdict(sizes),
            "length": self.length,
            "cache_tokens": sizes.cache_tokens,
            "requests": self.requests_at(sizes.num_pages - 1),
            "most_cache_tokens": self.most_cache_tokens,
            "most_requests": self.requests_at(self.most_pages),
            "writing": self.writing,
        }
        if not self.fits:
            return report
        seconds = self.chunk.roofline(self.device)
        for sight in self.sights:
            tower, chunks = sight.seconds(self.device)
            report[sight.kind] = {
                "frames": sight.frames,
                "patches": sight.patches,
                "tokens": sight.tokens,
                "flops": sight.tower.flops,
                "bytes": sight.tower.bytes,
                "roofline_seconds": tower,
                "prefill_seconds": chunks,
            }
        return report | {
            "flops": self.full.flops,
            "bytes": self.full.bytes,
            "collectives": [asdict(collective) for collective in self.full.collectives],
            "seconds": self.full.seconds(self.device),
            "roofline_seconds": self.full.roofline(self.device),
            "tokens_per_second": self.writing / self.full.roofline(self.device),
            "tokens_per_second_range": self.tokens_per_second._asdict(),
            "prefill": {
                "tokens": sizes.chunk,
                "flops": self.chunk.flops,
                "bytes": self.chunk.bytes,
                "collectives": [asdict(collective) for collective in self.chunk.collectives],
                "roofline_seconds": seconds,
                "tokens_per_second": sizes.shards * sizes.chunk / seconds,
            },
        }


def to_text(plan: DecodePlan) -> str:
    """Returns the plan for people: first whether it fits, then memory, requests and speed."""
    return "\n".join((_verdict(plan), *_memory(plan), *_requests(plan), *(_speed(plan) if plan.fits else ())))


def _verdict(plan: DecodePlan) -> str:
    free = (plan.hbm["capacity"] - plan.hbm["peak"]) / _GIB
    used = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    where = f"{plan.topology} ({plan.num_devices} chips, {used})"
    if plan.fits:
        return f"{where}: fits, {free:.2f} GiB of each chip stay free"
    if plan.compiles:
        return (f"{where}: does not fit, no request reaches {plan.length:,} tokens; give a smaller --length, "
                "fewer --slots or a larger --mesh.tensor")  # fmt: skip
    return f"{where}: does not fit, {-free:.2f} GiB a chip are missing; give fewer --slots or a larger --mesh.tensor"


def _memory(plan: DecodePlan) -> Iterator[str]:
    yield "memory of a chip:"
    for name, size in plan.hbm.items():
        yield f"  {name:<12} {size / _GIB:6.2f} GiB"


def _requests(plan: DecodePlan) -> Iterator[str]:
    sizes = plan.engine
    yield (
        f"pages that the engine takes by itself: {sizes.cache_tokens:,} tokens, "
        f"{plan.requests_at(sizes.num_pages - 1):,} requests of {plan.length:,} tokens"
    )
    yield (
        f"most that would fit (--cache-tokens {plan.most_cache_tokens}): "
        f"{plan.requests_at(plan.most_pages):,} requests, "
        "with no memory left to keep prompts that are shared"
    )
    yield f"writing at once: {plan.writing:,} of them, in {sizes.slots:,} slots"


def _speed(plan: DecodePlan) -> Iterator[str]:
    sizes, device = plan.engine, plan.device
    times = [work.roofline(device) * 1e3 for work in (plan.half, plan.full)]
    yield (
        f"a decode step: at least {Range(*times).to_text('.2f')} ms, requests at half and at full length; "
        f"{plan.half.bytes / 1e9:.2f} to {plan.full.bytes / 1e9:.2f} GB through a chip's memory; limit: {plan.limits}"
    )
    accepted = f", {sizes.num_drafts} drafts a step none to all accepted" if sizes.num_drafts else ""
    yield f"at most {plan.tokens_per_second.to_text()} tokens/s over all chips (full to half length{accepted})"
    seconds = plan.chunk.roofline(device)
    chunks = math.ceil(plan.length / sizes.chunk)
    yield (
        f"a prompt's chunk of {sizes.chunk} tokens: at least {seconds * 1e3:.2f} ms; "
        f"a prompt of {plan.length:,} tokens: {seconds * chunks:.2f} s, {sizes.shards} at a time"
    )
    for sight in plan.sights:
        tower, chunks = sight.seconds(device)
        what = "an image" if sight.kind == "image" else f"a video of {sight.frames} frames"
        yield (
            f"{what} ({sight.patches:,} patches, {sight.tokens:,} tokens): at least {tower + chunks:.2f} s, "
            f"{tower:.2f} s in the tower and {chunks:.2f} s in chunks; {sizes.shards} at a time"
        )
    for what, work in (("a decode step", plan.full), ("a prompt's chunk", plan.chunk)):
        sent = [f"{x.kind} {x.count} x, {x.bytes / 1e6:.1f} MB" for x in work.collectives]
        yield f"sent by a chip in {what}: {'; '.join(sent) or 'nothing'}"
    yield "Peak rates of data sheets, nothing measured on a TPU."
