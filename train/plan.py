"""What a run needs, so that it is known before a TPU is rented: memory, traffic and time of its compiled step.

The step is that of ``train.run``, compiled ahead of time from shapes alone: no weights, no tokenizer and no data are
read.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from qwen35_jax import gcs, lora
from qwen35_jax.config import ModelConfig
from qwen35_jax.model import Qwen35
from qwen35_jax.ops import gated_delta
from qwen35_jax.planning.aot import abstract_model, bytes_per_device, compile_abstract, topology_devices
from qwen35_jax.planning.devices import find_device
from qwen35_jax.planning.flops import training_flops_per_token
from qwen35_jax.planning.hlo import Costs, read_costs
from qwen35_jax.planning.published import find_config
from qwen35_jax.sharding import check_mesh
from qwen35_jax.storage import write_atomically
from train.config import TrainConfig
from train.plan_report import Plan, run_report, to_text
from train.settle import settle
from train.setup import TrainingSetup, make_setup, model_options
from train.state import abstract_state

# Compilations that the search for a change that fits may cost, minutes each at full size.
_MOST_CANDIDATES = 6

# Products of a block of queries with a block of slots in each kernel of the attention.
_ATTENTION_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}

logger = logging.getLogger(__name__)


def print_plan(config: TrainConfig, topology: str) -> None:
    """Prints the plan that the settings ask for, and writes it as JSON where they name a file.

    Raises:
      ValueError: see ``make_plan``; or the file exists.
    """
    options = config.options
    if options.plan_json is not None:
        gcs.check_is_path(options.plan_json)
    target = None if options.plan_json is None else Path(options.plan_json)
    if target is not None and target.exists():
        raise ValueError(f"plan_json={options.plan_json!r} exists; name a new file or remove it.")
    plan = make_plan(config, topology)
    if target is not None:
        report = plan.to_json() | run_report(plan, config, options.plan_price)
        write_atomically(target, json.dumps(report, indent=2) + "\n")
    print(to_text(plan, config, options.plan_price))


def make_plan(config: TrainConfig, topology: str, *, search: bool = True) -> Plan:
    """Compiles the step of a run for a topology; where it does not fit, looks for the nearest change that does.

    Args:
      topology: chips, such as ``v5e:2x4``.
      search: whether to look for such a change.

    Raises:
      ValueError: an unknown topology or size of model, a mesh that is not of the topology's size or does not divide
        the model or the batch.
    """
    if config.recipe.steps is None:
        # How many there are decides nothing about one of them.
        config = config.replace(steps=1_000)
    devices = topology_devices(topology)
    model_config = find_config(config.recipe.model.path)
    sizes = asdict(config.layout.mesh)
    check_mesh(model_config.text, sizes, sequences=_micro_batch_size(config), tokens=config.recipe.data.sequence_length)
    used = math.prod(sizes.values())
    if used != len(devices):
        raise ValueError(
            f"the mesh has {used} devices, but {topology} has {len(devices)}; make the product of --mesh.data, "
            f"--mesh.fsdp, --mesh.context and --mesh.tensor {len(devices)}."
        )
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
