"""What a plan says: whether a step fits, how long it takes, what the run costs, and what would make it cheaper."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qwen35_jax.planning.devices import Device
from qwen35_jax.planning.hlo import Costs
from qwen35_jax.planning.ranges import Range, rate
from train.config import TrainConfig

_GIB = 2**30
# By how much the compiler's cycles are too many: see `planning.hlo.Costs`.
_EXCESS = (1.6, 2.0)
_UNITS = {"s": 1, "min": 60, "h": 3600}


def step_seconds(seconds: Mapping[str, float], estimated_seconds: float) -> Range:
    """Returns between which times a step lies.

    It is no faster than the busiest resource at its peak. The compiler's estimate is mostly too long (see
    ``planning.hlo.Costs``), but waiting for other devices is no part of it: all that is sent is added, as if nothing
    was computed meanwhile.

    Args:
      seconds: the least time of each resource: ``compute``, ``hbm`` and ``ici``.
    """
    least = max(seconds.values())
    return Range(least, max(least, estimated_seconds + seconds["ici"]))


@dataclass(frozen=True)
class Plan:
    """What the compiler and the data sheets say about one step. Bytes, FLOPs and seconds are those of one device."""

    topology: str
    device: Device
    num_devices: int
    hbm: dict[str, int]
    tokens: int
    """Tokens of a global batch."""
    model_flops: float
    """FLOPs of the model over all devices, without recomputation."""
    costs: Costs | None = None
    """None where the step does not fit."""
    kernel_flops: float = 0.0
    """FLOPs of the kernels, which the program's text does not show."""
    kernel_passes_flops: float = 0.0
    """The same for each pass of the matrix unit, of which a product of float32 numbers takes several."""
    remedy: str | None = None
    """The nearest change that fits, where the step does not."""
    teacher_costs: Costs | None = None
    """Of a live teacher's program, which are part of ``costs``."""
    teacher_kernel_passes_flops: float = 0.0

    @property
    def fits(self) -> bool:
        return self.costs is not None

    @property
    def free_bytes(self) -> int:
        """Memory of a chip that the step leaves free; below 0 what it lacks."""
        return self.hbm["capacity"] - self.hbm["peak"]

    @property
    def known_costs(self) -> Costs:
        """The costs of a step that fits."""
        assert self.costs is not None, "a step that does not fit has no costs"
        return self.costs

    @property
    def flops(self) -> float:
        return self.known_costs.flops + self.kernel_flops

    @property
    def seconds(self) -> dict[str, float]:
        """The least time that each resource needs: ``compute``, ``hbm`` and ``ici``."""
        sent = sum(collective.bytes for collective in self.known_costs.collectives)
        return {
            "compute": self.flops / self.device.peak_flops,
            "hbm": self.known_costs.bytes / self.device.hbm_bytes_per_second,
            "ici": sent / self.device.ici_bytes_per_second,
        }

    @property
    def roofline_seconds(self) -> float:
        return max(self.seconds.values())

    @property
    def estimated_seconds(self) -> float:
        """The time of the compiler's cycles, which are too many (see ``Costs``), and of kernels at the peak rate.

        Waiting for other devices is left out.
        """
        return self.known_costs.cycles / self.device.clock_hz + self.kernel_passes_flops / self.device.peak_flops

    @property
    def teacher_share(self) -> float | None:
        """The share of a live teacher in the compiler's estimate; None without one."""
        if self.teacher_costs is None:
            return None
        kernels = self.teacher_kernel_passes_flops / self.device.peak_flops
        return (self.teacher_costs.cycles / self.device.clock_hz + kernels) / self.estimated_seconds

    @property
    def step_seconds(self) -> Range:
        """Between which times a step lies."""
        return step_seconds(self.seconds, self.estimated_seconds)

    @property
    def likely_seconds(self) -> Range:
        """The time of a step without what is usually too much in the compiler's cycles."""
        cycles = self.known_costs.cycles / self.device.clock_hz
        least, most = self.step_seconds
        low, high = (self.estimated_seconds - cycles + cycles / excess for excess in reversed(_EXCESS))
        return Range(min(max(least, low), most), min(max(least, high), most))

    @property
    def limits(self) -> str:
        """What limits the step: ``memory`` where it does not fit, else ``compute``, ``hbm`` or ``ici``."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.fits else "memory"

    @property
    def recomputation(self) -> float:
        """FLOPs of the step beyond those of the model, as a fraction of the latter."""
        return max(0.0, self.flops * self.num_devices / self.model_flops - 1)

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON values; without the step's costs where it does not fit."""
        report = {
            "topology": self.topology,
            "num_devices": self.num_devices,
            "fits": self.fits,
            "hbm": self.hbm,
            "free_bytes": self.free_bytes,
            "limits": self.limits,
            "model_flops": self.model_flops,
            "tokens_per_step": self.tokens,
        }
        if not self.fits:
            return report | {"remedy": self.remedy}
        return report | {
            "flops": self.flops,
            "bytes": self.known_costs.bytes,
            "collectives": [asdict(collective) for collective in self.known_costs.collectives],
            "seconds": self.seconds,
            "roofline_seconds": self.roofline_seconds,
            "estimated_seconds": self.estimated_seconds,
            **({} if self.teacher_share is None else {"teacher_share": self.teacher_share}),
            "step_seconds": self.step_seconds._asdict(),
            "likely_step_seconds": self.likely_seconds._asdict(),
            # At the least time, as before there were ranges.
            "tokens_per_second": self.tokens / self.roofline_seconds,
            "tokens_per_second_range": rate(self.tokens, self.step_seconds)._asdict(),
        }


def run_report(plan: Plan, config: TrainConfig, price: float | None = None) -> dict[str, Any]:
    """Returns what the whole run takes, as JSON values; empty where the step does not fit.

    Args:
      price: of one chip for an hour.
    """
    if not plan.fits:
        return {}
    steps = config.recipe.steps
    advice = list(cheaper_changes(plan, config))
    if steps is None:
        return {"cheaper": advice}
    hours = plan.step_seconds.times(steps / 3600)
    report = {"steps": steps, "hours": hours._asdict(), "chip_hours": hours.times(plan.num_devices)._asdict()}
    if price is not None:
        report["price"] = hours.times(plan.num_devices * price)._asdict()
    return {"run": report, "cheaper": advice}


def cheaper_changes(plan: Plan, config: TrainConfig) -> Iterator[str]:
    """Yields changes that should take fewer chip-hours and keep the numbers. None was compiled."""
    layout, accumulation = config.layout, config.recipe.accumulation
    roomy = plan.free_bytes > plan.hbm["temporaries"]
    if roomy and layout.remat in ("block", "offload") and plan.recomputation > 0.1:
        kept = "save_dots" if layout.remat == "block" else "block"
        yield f"--model.remat {kept}: {plan.recomputation:.0%} of the model's FLOPs come on top, mostly to recompute"
    if roomy and accumulation > 1 and plan.seconds["compute"] < 1.5 * max(plan.seconds["hbm"], plan.seconds["ici"]):
        smaller = next(n for n in range(accumulation - 1, 0, -1) if accumulation % n == 0)
        yield f"--accumulation {smaller}: weights are read, and where they are split sent, once a micro-batch"
    if plan.limits == "ici":
        yield "a mesh that sends less: larger --mesh.data or --mesh.fsdp, smaller --mesh.tensor and --mesh.context"
    if roomy and plan.num_devices > 1:
        yield "fewer chips: the run takes longer by as much, and they send less"


def to_text(plan: Plan, config: TrainConfig, price: float | None = None) -> str:
    """Lays the plan out for people, the verdict first; ``price`` is that of one chip for an hour."""
    peak, capacity, free = (size / _GIB for size in (plan.hbm["peak"], plan.hbm["capacity"], plan.free_bytes))
    parts = [
        part for part in ("weights", "adapters", "optimizer", "teacher", "rollouts", "temporaries") if part in plan.hbm
    ]
    memory = [
        f"{plan.num_devices} x {plan.device.name} ({plan.topology}), {plan.tokens:,} tokens a step",
        f"HBM, GiB a chip: {', '.join(f'{name} {plan.hbm[name] / _GIB:.2f}' for name in parts)}; "
        f"peak {peak:.2f} of {capacity:.2f}",
    ]
    if not plan.fits:
        verdict = [
            f"DOES NOT FIT: {-free:.2f} GiB a chip too much",
            f"to make it fit: {plan.remedy or 'none of the changes that were tried does; take more chips'}",
        ]
        return "\n".join([*verdict, *memory])
    report = run_report(plan, config, price)
    advice = [f"to make it cheaper, try {change}" for change in report["cheaper"]]
    verdict = [f"FITS: {free:.2f} GiB a chip stay free", *_time(plan), *_run(plan, report.get("run"), price), *advice]
    return "\n".join([*verdict, *memory, *_details(plan, price)])


def _time(plan: Plan) -> Iterator[str]:
    speed = rate(plan.tokens, plan.step_seconds)
    yield (
        f"a step takes {plan.step_seconds.to_text('.2f')} s, most likely {plan.likely_seconds.to_text('.2f')}: "
        f"{speed.to_text()} tokens/s, {speed.times(1 / plan.num_devices).to_text()} a chip"
    )
    yield (
        f"  {plan.step_seconds.low:.2f} s if {plan.limits}, the busiest of computing, memory and links, works at its "
        "peak: no step is faster"
    )
    yield (
        f"  {plan.step_seconds.high:.2f} s by the compiler's estimate of every instruction, and "
        f"{plan.seconds['ici']:.2f} s of sending that nothing hides: plan your budget with it"
    )
    low, high = _EXCESS
    yield (
        f"  {plan.likely_seconds.to_text('.2f')} s because that estimate is {low:g} to {high:g} times what the "
        "schedules of its instructions take (compared on v5e); nothing of this was measured on a TPU yet"
    )


def _run(plan: Plan, run: Mapping[str, Any] | None, price: float | None) -> Iterator[str]:
    if run is None:
        yield "this run: its data decide how many steps it has; give --steps for hours and price"
        return
    seconds = plan.step_seconds.times(run["steps"])
    unit = next(unit for unit in reversed(_UNITS) if seconds.low >= _UNITS[unit] or unit == "s")
    cost = "" if price is None else f", {Range(**run['price']).to_text(',.2f')} at {price:g} a chip-hour"
    yield (
        f"this run: {run['steps']:,} steps, {seconds.times(1 / _UNITS[unit]).to_text(',.1f')} {unit}, "
        f"{Range(**run['chip_hours']).to_text(',.1f')} chip-hours{cost} (starting, evaluating and saving left out)"
    )


def _details(plan: Plan, price: float | None) -> Iterator[str]:
    sent = [f"{x.kind} {x.count} x, {x.bytes / 1e9:.2f} GB" for x in plan.known_costs.collectives]
    yield (
        f"a step, per chip: {plan.flops / 1e12:.1f} TFLOP, {plan.known_costs.bytes / 1e9:.1f} GB through HBM; "
        f"sent: {'; '.join(sent) or 'nothing'}"
    )
    least = ", ".join(f"{name} {seconds * 1e3:,.0f} ms" for name, seconds in plan.seconds.items())
    busy = plan.model_flops / plan.num_devices / plan.device.peak_flops
    used = Range(busy / plan.step_seconds.high, busy / plan.step_seconds.low)
    yield f"least time: {least}; compiler's estimate: {plan.estimated_seconds * 1e3:,.0f} ms"
    yield f"of the chips' peak the model's own FLOPs use {used.to_text('.0%')}"
    if plan.teacher_share is not None:
        yield f"the teacher takes {plan.teacher_share:.0%} of the compiler's estimate"
    if price is not None:
        cost = plan.step_seconds.times(price * plan.num_devices / 3600 / plan.tokens * 1e9)
        yield f"at {price:g} a chip-hour: {cost.to_text()} for a billion tokens"
