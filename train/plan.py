"""What a run needs, so that it is known before a TPU is rented: memory, traffic and time of its compiled step.

The step is that of ``train.run``, compiled ahead of time from shapes alone: no weights, no tokenizer and no data are
read.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
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
from qwen35_jax.sharding import check_mesh
from qwen35_jax.storage import write_atomically
from train.config import TrainConfig
from train.settle import settle
from train.setup import TrainingSetup, make_setup, model_options
from train.state import abstract_state

# Compilations that the search for a change that fits may cost, minutes each at full size.
_MOST_CANDIDATES = 6

# Products of a block of queries with a block of slots in each kernel of the attention.
_ATTENTION_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}

logger = logging.getLogger(__name__)


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

    @property
    def fits(self) -> bool:
        return self.costs is not None

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
    def tokens_per_second(self) -> float:
        """Tokens of all devices, at the least time."""
        return self.tokens / self.roofline_seconds

    @property
    def limits(self) -> str:
        """What limits the step: ``memory`` where it does not fit, else ``compute``, ``hbm`` or ``ici``."""
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
            "bytes": self.known_costs.bytes,
            "collectives": [asdict(collective) for collective in self.known_costs.collectives],
            "seconds": self.seconds,
            "roofline_seconds": self.roofline_seconds,
            "estimated_seconds": self.estimated_seconds,
            "tokens_per_second": self.tokens_per_second,
        }

    def to_text(self, price: float | None = None) -> str:
        """Lays the plan out for people; ``price`` is that of one chip for an hour."""
        gib = {name: f"{size / 2**30:.2f}" for name, size in self.hbm.items()}
        uses = ", ".join(f"{name} {gib[name]}" for name in ("weights", "adapters", "optimizer", "temporaries"))
        lines = [
            f"{self.num_devices} x {self.device.name} ({self.topology}), {self.tokens:,} tokens a step",
            f"HBM, GiB per device: {uses}; peak {gib['peak']} of {gib['capacity']}",
        ]
        if not self.fits:
            return "\n".join([*lines, f"does not fit; {self.remedy or 'no change that was tried does'}"])
        sent = [f"{x.kind} {x.count} x, {x.bytes / 1e9:.2f} GB" for x in self.known_costs.collectives]
        times = ", ".join(f"{name} {seconds * 1e3:,.0f} ms" for name, seconds in self.seconds.items())
        utilization = self.model_flops / self.num_devices / self.device.peak_flops / self.estimated_seconds
        lines += [
            f"a step, per device: {self.flops / 1e12:.1f} TFLOP, {self.known_costs.bytes / 1e9:.1f} GB through HBM; "
            f"sent: {'; '.join(sent) or 'nothing'}",
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


def print_plan(config: TrainConfig, topology: str) -> None:
    """Prints the plan that the settings ask for, and writes it as JSON where they name a file.

    Raises:
      ValueError: see ``make_plan``; or the file exists.
    """
    options = config.options
    target = None if options.plan_json is None else Path(options.plan_json)
    if target is not None and target.exists():
        raise ValueError(f"plan_json={options.plan_json!r} exists; name a new file or remove it.")
    plan = make_plan(config, topology)
    if target is not None:
        write_atomically(target, json.dumps(plan.to_json(), indent=2) + "\n")
    print(plan.to_text(options.plan_price))


def make_plan(config: TrainConfig, topology: str, *, search: bool = True) -> Plan:
    """Compiles the step of a run for a topology; where it does not fit, looks for the nearest change that does.

    Args:
      topology: chips, such as ``v5e:2x4``.
      search: whether to look for such a change.

    Raises:
      ValueError: an unknown topology or size of model, a mesh that is not of the topology's size or does not divide
        the model or the batch.
    """
    devices = topology_devices(topology)
    model_config = find_config(config.recipe.model.path)
    sizes = asdict(config.layout.mesh)
    check_mesh(model_config.text, sizes, sequences=_micro_batch_size(config), tokens=config.recipe.data.sequence_length)
    used = math.prod(sizes.values())
    if used != len(devices):
        raise ValueError(f"the mesh has {used} devices, but {topology} has {len(devices)}; "
                         f"make the product of the mesh's axes {len(devices)}.")  # fmt: skip
    config = settle(config, model_config).config
    plan = _plan(config, model_config, topology, devices)
    if plan.fits or not search:
        return plan
    for description, changed in nearest_changes(config)[:_MOST_CANDIDATES]:
        logger.info("%.2f GiB do not fit; trying %s", plan.hbm["peak"] / 2**30, description)
        other = _plan(changed, model_config, topology, devices)
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


def nearest_changes(config: TrainConfig) -> list[tuple[str, TrainConfig]]:
    """Lists changes that need less memory and keep the numbers, those that cost the least time first."""
    changes: list[tuple[str, TrainConfig]] = []

    def add(description: str, **fields: Any) -> None:
        last = changes[-1] if changes else ("", config)
        changes.append((f"{last[0]} {description}".strip(), last[1].replace(**fields)))

    layout = config.layout
    mesh = layout.mesh
    if layout.remat in ("none", "save_dots"):
        add("--model.remat block", remat="block")
    if mesh.data > 1:
        add(f"--mesh.data 1 --mesh.fsdp {mesh.data * mesh.fsdp}",
            mesh=dataclasses.replace(mesh, data=1, fsdp=mesh.data * mesh.fsdp))  # fmt: skip
    for accumulation in _more_accumulation(config):
        add(f"--accumulation {accumulation}", accumulation=accumulation)
    if layout.loss_chunk > 64:
        add("--loss-chunk 64", loss_chunk=64)
    if layout.remat != "offload":
        add("--model.remat offload", remat="offload")
    return changes


def _more_accumulation(config: TrainConfig) -> Iterator[int]:
    mesh = config.layout.mesh
    sequences = config.recipe.data.sequences_per_batch // (mesh.data * mesh.fsdp)
    accumulation = 2 * config.recipe.accumulation
    while accumulation <= sequences and sequences % accumulation == 0:
        yield accumulation
        accumulation *= 2


def _micro_batch_size(config: TrainConfig) -> int:
    return config.recipe.data.sequences_per_batch // config.recipe.accumulation


def _plan(config: TrainConfig, model_config: ModelConfig, topology: str, devices: Sequence[jax.Device]) -> Plan:
    recipe = config.recipe
    mesh = config.layout.mesh.mesh(devices)
    setup = abstract_setup(config, model_config, mesh)
    compiled = compile_abstract(setup.step, setup.state, setup.frozen, setup.batch, mesh=mesh)
    device = find_device(topology)
    assert device is not None, topology
    adapters = bytes_per_device(setup.state.params) if recipe.trains_adapters else 0
    hbm = {
        "weights": bytes_per_device(setup.frozen) + bytes_per_device(setup.state.params) - adapters,
        "adapters": adapters,
        "optimizer": bytes_per_device(setup.state.opt_state),
    }
    hbm |= {"temporaries": compiled.peak_bytes - sum(hbm.values()), "peak": compiled.peak_bytes}
    per_token = training_flops_per_token(
        model_config,
        sequence_length=recipe.data.sequence_length,
        adapters=recipe.trains_adapters,
        mtp_steps=recipe.objective.mtp_steps,
    )
    tokens = recipe.data.sequences_per_batch * recipe.data.sequence_length
    costs = None if compiled.text is None else read_costs(compiled.text)
    kernel_flops, kernel_passes_flops = (0.0, 0.0) if costs is None else _kernel_flops(config, model_config, costs)
    return Plan(
        topology=topology,
        device=device,
        num_devices=len(devices),
        hbm=hbm | {"capacity": device.hbm_bytes},
        tokens=tokens,
        model_flops=per_token * tokens,
        costs=costs,
        kernel_flops=kernel_flops,
        kernel_passes_flops=kernel_passes_flops,
    )


def abstract_setup(config: TrainConfig, model_config: ModelConfig, mesh: Mesh) -> TrainingSetup:
    """Makes the setup of a run with shapes in place of arrays. Call it outside the mesh's context."""

    def make() -> Qwen35:
        model = Qwen35(model_config, **model_options(config), rngs=nnx.Rngs(0))
        if config.recipe.lora is not None:
            lora.add(model, config.recipe.lora, config.recipe.seed)
        return model

    return make_setup(config, abstract_model(make, mesh), mesh, abstract_state)


def _kernel_flops(config: TrainConfig, model_config: ModelConfig, costs: Costs) -> tuple[float, float]:
    """Counts the FLOPs of the kernels on one device, and the same for each pass of the matrix unit."""
    text, mesh, length = model_config.text, config.layout.mesh, config.recipe.data.sequence_length
    sequences = _micro_batch_size(config) // (mesh.data * mesh.fsdp)

    def calls(name: str) -> int:
        return sum(count for kernel, count in costs.without_cycles.items() if name in kernel)

    # Half of the square of every sequence, by causality.
    square = 2 * sequences * text.num_attention_heads // mesh.tensor * text.head_dim * length**2 / 2 / mesh.context
    attention = square * sum(factor * calls(name) for name, factor in _ATTENTION_PRODUCTS.items())
    heads = text.linear_num_value_heads // mesh.tensor
    chunk = 2 * sequences * heads * length / mesh.context * gated_delta.CHUNK_SIZE**2
    products, passes = (
        sum(factors[i] * calls(name) for name, factors in gated_delta.KERNEL_PRODUCTS.items()) for i in (0, 1)
    )
    return attention + chunk * products, attention + chunk * passes
