"""What a run needs, known before a TPU is rented: the step compiled ahead of time, its memory, traffic and time.

The step is that of ``train.run``, built from shapes alone: no weights, no tokenizer and no data are read.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from qwen35_jax import lora
from qwen35_jax.config import ModelConfig
from qwen35_jax.model import Qwen35
from qwen35_jax.ops import gated_delta
from qwen35_jax.planning.aot import abstract_model, bytes_per_device, compile_abstract, topology_devices
from qwen35_jax.planning.devices import Device, find_device
from qwen35_jax.planning.flops import training_flops_per_token
from qwen35_jax.planning.hlo import Costs, read_costs
from qwen35_jax.presets import PRESETS
from qwen35_jax.sharding import check_mesh, make_mesh
from qwen35_jax.storage import write_atomically
from train.config import SFTConfig
from train.losses import Objective
from train.parts import Parts, make_parts
from train.state import abstract_state

MakeObjective = Callable[[SFTConfig], Objective]

# Compilations that the search for a change that fits may cost, minutes each at full size.
_MOST_CANDIDATES = 6

# Products of a block of queries with a block of slots in each kernel of the attention.
_ATTENTION_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What the compiler and the data sheets say of one step; bytes, FLOPs and seconds are those of one device."""

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

    @property
    def fits(self) -> bool:
        return self.costs is not None

    @property
    def flops(self) -> float:
        return self.costs.flops + self.kernel_flops

    @property
    def seconds(self) -> dict[str, float]:
        """The least time that each resource needs: ``compute``, ``hbm`` and ``ici``."""
        sent = sum(collective.bytes for collective in self.costs.collectives)
        return {
            "compute": self.flops / self.device.peak_flops,
            "hbm": self.costs.bytes / self.device.hbm_bytes_per_second,
            "ici": sent / self.device.ici_bytes_per_second,
        }

    @property
    def roofline_seconds(self) -> float:
        return max(self.seconds.values())

    @property
    def estimated_seconds(self) -> float:
        """The compiler's cycles, which are high (see ``Costs``), and the passes of kernels at the peak rate.

        Waiting for other devices is left out.
        """
        return self.costs.cycles / self.device.clock_hz + self.kernel_passes_flops / self.device.peak_flops

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all devices, at the least time."""
        return self.tokens / self.roofline_seconds

    @property
    def limits(self) -> str:
        """What the step is bound by: ``memory`` where it does not fit, else ``compute``, ``hbm`` or ``ici``."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.fits else "memory"

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON values; without the step's costs where it does not fit."""
        report = {
            "topology": self.topology,
            "num_devices": self.num_devices,
            "fits": self.fits,
            "hbm": self.hbm,
            "limits": self.limits,
            "model_flops": self.model_flops,
            "tokens_per_step": self.tokens,
        }
        if not self.fits:
            return report | {"remedy": self.remedy}
        return report | {
            "flops": self.flops,
            "bytes": self.costs.bytes,
            "collectives": [dataclasses.asdict(collective) for collective in self.costs.collectives],
            "seconds": self.seconds,
            "roofline_seconds": self.roofline_seconds,
            "estimated_seconds": self.estimated_seconds,
            "tokens_per_second": self.tokens_per_second,
        }

    def to_text(self, price: float | None = None) -> str:
        """Lays the plan out for people; ``price`` is that of one chip for an hour."""
        gib = {name: f"{size / 2**30:.2f}" for name, size in self.hbm.items()}
        parts = ", ".join(f"{name} {gib[name]}" for name in ("weights", "adapters", "optimizer", "temporaries"))
        lines = [
            f"{self.num_devices} x {self.device.name} ({self.topology}), {self.tokens:,} tokens a step",
            f"HBM, GiB per device: {parts}; peak {gib['peak']} of {gib['capacity']}",
        ]
        if not self.fits:
            return "\n".join([*lines, f"does not fit; {self.remedy or 'no change that was tried does'}"])
        sent = [f"{x.kind} {x.count} x, {x.bytes / 1e9:.2f} GB" for x in self.costs.collectives]
        times = ", ".join(f"{name} {seconds * 1e3:,.0f} ms" for name, seconds in self.seconds.items())
        utilization = self.model_flops / self.num_devices / self.device.peak_flops / self.estimated_seconds
        lines += [
            f"a step, per device: {self.flops / 1e12:.1f} TFLOP, {self.costs.bytes / 1e9:.1f} GB through HBM; sent: "
            + ("; ".join(sent) or "nothing"),
            f"least time: {times}; bound by {self.limits}",
            f"compiler's estimate: {self.estimated_seconds * 1e3:,.0f} ms, {utilization:.0%} of the model's peak "
            "(waiting for other devices left out)",
            f"at the least time: {self.tokens_per_second:,.0f} tokens/s, "
            f"{self.tokens_per_second / self.num_devices:,.0f} per device",
        ]
        if price is not None:
            cost = price * self.num_devices / 3600 / self.tokens_per_second * 1e9
            lines.append(f"at {price:g} an hour and chip: {cost:,.0f} for a billion tokens")
        return "\n".join(lines)


def print_plan(cfg: SFTConfig, make_objective: MakeObjective) -> None:
    """Prints the plan that the settings ask for, and writes it as JSON where they name a file.

    Raises:
      ValueError: see ``make_plan``; or the file exists.
    """
    target = None if cfg.plan_json is None else Path(cfg.plan_json)
    if target is not None and target.exists():
        raise ValueError(f"plan_json={cfg.plan_json!r} exists; name a new file or remove it.")
    plan = make_plan(cfg, cfg.plan, make_objective)
    if target is not None:
        write_atomically(target, json.dumps(plan.to_json(), indent=2) + "\n")
    print(plan.to_text(cfg.plan_price))


def make_plan(cfg: SFTConfig, topology: str, make_objective: MakeObjective, *, search: bool = True) -> Plan:
    """Compiles the step of a run for a topology; where it does not fit, looks for the nearest change that does.

    Args:
      topology: chips, such as ``v5e:2x4``.
      make_objective: what is minimised, for a run's settings.
      search: whether to look for such a change.

    Raises:
      ValueError: an unknown topology or size of model, a mesh that is not of the topology's size or does not divide
        the model or the batch.
    """
    devices = topology_devices(topology)
    config = find_config(cfg.model.path)
    check_mesh(config.text, dataclasses.asdict(cfg.mesh), sequences=_micro_rows(cfg), tokens=cfg.data.sequence_length)
    used = cfg.mesh.data * cfg.mesh.fsdp * cfg.mesh.context * cfg.mesh.tensor
    if used != len(devices):
        raise ValueError(f"the mesh has {used} devices, but {topology} has {len(devices)}; "
                         f"make the product of the mesh's axes {len(devices)}.")  # fmt: skip
    plan = _plan(cfg, config, topology, devices, make_objective)
    if plan.fits or not search:
        return plan
    for description, changed in nearest_changes(cfg)[:_MOST_CANDIDATES]:
        logger.info("%.2f GiB do not fit; trying %s", plan.hbm["peak"] / 2**30, description)
        other = _plan(changed, config, topology, devices, make_objective)
        if other.fits:
            return dataclasses.replace(
                plan, remedy=f"with {description} it does: peak {other.hbm['peak'] / 2**30:.2f} GiB"
            )
    return plan


def find_config(path: str) -> ModelConfig:
    """Returns the configuration of a local checkpoint, or of a published one by its hub id, without a download.

    Raises:
      ValueError: neither.
    """
    if Path(path).is_dir():
        return ModelConfig.from_hf(path)
    for size, config in PRESETS.items():
        if path.lower() in (f"qwen/qwen3.5-{size}", f"qwen/qwen3.5-{size}-base"):
            return config
    sizes = ", ".join(f"Qwen/Qwen3.5-{size.upper()}" for size, config in PRESETS.items() if config.text.moe is None)
    raise ValueError(f"model.path={path!r} is neither a local folder nor a published size; give a folder or one of "
                     f"{sizes}.")  # fmt: skip


def nearest_changes(cfg: SFTConfig) -> list[tuple[str, SFTConfig]]:
    """Lists changes that need less memory and keep the numbers, those that cost the least time first."""
    changes: list[tuple[str, SFTConfig]] = []

    def add(description: str, **fields: Any) -> None:
        last = changes[-1] if changes else ("", cfg)
        changes.append((f"{last[0]} {description}".strip(), dataclasses.replace(last[1], **fields)))

    mesh = cfg.mesh
    if cfg.model.remat in ("none", "save_dots"):
        add("--model.remat block", model=dataclasses.replace(cfg.model, remat="block"))
    if mesh.data > 1:
        add(f"--mesh.data 1 --mesh.fsdp {mesh.data * mesh.fsdp}",
            mesh=dataclasses.replace(mesh, data=1, fsdp=mesh.data * mesh.fsdp))  # fmt: skip
    for accumulation in _more_accumulation(cfg):
        add(f"--accumulation {accumulation}", accumulation=accumulation)
    if cfg.loss_chunk > 64:
        add("--loss-chunk 64", loss_chunk=64)
    if cfg.model.remat != "offload":
        add("--model.remat offload", model=dataclasses.replace(cfg.model, remat="offload"))
    return changes


def _more_accumulation(cfg: SFTConfig) -> Iterator[int]:
    rows = cfg.data.rows_per_batch // (cfg.mesh.data * cfg.mesh.fsdp)
    accumulation = 2 * cfg.accumulation
    while accumulation <= rows and rows % accumulation == 0:
        yield accumulation
        accumulation *= 2


def _micro_rows(cfg: SFTConfig) -> int:
    return cfg.data.rows_per_batch // cfg.accumulation


def _plan(cfg: SFTConfig, config: ModelConfig, topology: str, devices, make_objective: MakeObjective) -> Plan:
    mesh = make_mesh(**dataclasses.asdict(cfg.mesh), devices=devices)
    parts = abstract_parts(cfg, config, make_objective(cfg), mesh)
    compiled = compile_abstract(parts.step, parts.state, parts.frozen, parts.batch, mesh=mesh)
    device = find_device(topology)
    adapters = bytes_per_device(parts.state.params) if cfg.lora else 0
    hbm = {
        "weights": bytes_per_device(parts.frozen) + bytes_per_device(parts.state.params) - adapters,
        "adapters": adapters,
        "optimizer": bytes_per_device(parts.state.opt_state),
    }
    hbm |= {"temporaries": compiled.peak_bytes - sum(hbm.values()), "peak": compiled.peak_bytes}
    per_token = training_flops_per_token(
        config, sequence_length=cfg.data.sequence_length, adapters=cfg.lora is not None,
        mtp_steps=cfg.mtp.num_steps if cfg.mtp.weight else 0,
    )  # fmt: skip
    tokens = cfg.data.rows_per_batch * cfg.data.sequence_length
    costs = read_costs(compiled.text) if compiled.fits else None
    return Plan(
        topology, device, len(devices), hbm | {"capacity": device.hbm_bytes}, tokens, per_token * tokens,
        costs, *(_kernel_flops(cfg, config, costs) if costs else ()),
    )  # fmt: skip


def abstract_parts(cfg: SFTConfig, config: ModelConfig, objective: Objective, mesh: Mesh) -> Parts:
    """Makes the parts of a run with shapes in place of arrays. Call it outside the mesh's context."""

    def make() -> Qwen35:
        model = Qwen35(config, dtype=cfg.model.dtype, param_dtype=cfg.param_dtype, rngs=nnx.Rngs(0))
        if cfg.lora is not None:
            lora.add(model, cfg.lora, cfg.seed)
        return model

    return make_parts(cfg, abstract_model(make, mesh), objective, mesh, abstract_state)


def _kernel_flops(cfg: SFTConfig, config: ModelConfig, costs: Costs) -> tuple[float, float]:
    """Counts the products of the kernels on one device, and their passes of the matrix unit."""
    text, mesh, length = config.text, cfg.mesh, cfg.data.sequence_length
    rows = _micro_rows(cfg) // (mesh.data * mesh.fsdp)

    def calls(name: str) -> int:
        return sum(count for kernel, count in costs.without_cycles.items() if name in kernel)

    # Half of the square of every row, by causality.
    square = 2 * rows * text.num_attention_heads // mesh.tensor * text.head_dim * length**2 / 2 / mesh.context
    attention = square * sum(factor * calls(name) for name, factor in _ATTENTION_PRODUCTS.items())
    chunk = 2 * rows * text.linear_num_value_heads // mesh.tensor * length / mesh.context * gated_delta.CHUNK_SIZE**2
    products, passes = (
        sum(factors[i] * calls(name) for name, factors in gated_delta.KERNEL_PRODUCTS.items()) for i in (0, 1)
    )
    return attention + chunk * products, attention + chunk * passes
