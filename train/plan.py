"""What a run needs, so that it is known before a TPU is rented: memory, traffic and time of its compiled step.

The step is that of ``train.run``, compiled ahead of time from shapes alone: no weights, no tokenizer and no data are
read.
"""

import dataclasses
import json
import logging
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from qwen35_jax import gcs, lora
from qwen35_jax.config import ModelConfig
from qwen35_jax.model import Qwen35
from qwen35_jax.ops import gated_delta
from qwen35_jax.ops.attention import splash
from qwen35_jax.planning.aot import Compiled, abstract_model, bytes_per_device, compile_abstract, topology_devices
from qwen35_jax.planning.devices import find_device
from qwen35_jax.planning.hlo import Costs, read_costs
from qwen35_jax.planning.published import find_config
from qwen35_jax.sharding import check_mesh
from qwen35_jax.storage import write_atomically
from train.config import TrainConfig
from train.plan_report import Plan, run_report, to_text
from train.plan_rollouts import rollout_bytes
from train.plan_teacher import (
    PlannedTeacher,
    Teaching,
    compile_teaching,
    head_shape,
    plan_teacher,
    with_teacher,
)
from train.settle import settle
from train.setup import TrainingSetup, make_setup, model_options
from train.state import abstract_state
from train.work import flops_per_token, vision_passes

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
    teacher = plan_teacher(config, model_config)
    config = settle(with_teacher(config, teacher), model_config).config
    plan = _plan(config, model_config, topology, devices, teacher)
    if plan.fits or not search:
        return plan
    for description, changed in nearest_changes(config)[:_MOST_CANDIDATES]:
        logger.info("%.2f GiB do not fit; trying %s", plan.hbm["peak"] / 2**30, description)
        other = _plan(changed, model_config, topology, devices, teacher)
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


def _plan(
    config: TrainConfig,
    model_config: ModelConfig,
    topology: str,
    devices: Sequence[jax.Device],
    teacher: PlannedTeacher | None,
) -> Plan:
    recipe = config.recipe
    mesh = config.layout.mesh.mesh(devices)
    setup = abstract_setup(config, model_config, mesh, head_shape(teacher, model_config.text.vocab_size, mesh))
    step = compile_abstract(setup.step, setup.state, setup.frozen, setup.batch, mesh=mesh)
    device = find_device(topology)
    assert device is not None, topology
    programs = [(step, model_config)]
    teaching = None if teacher is None else compile_teaching(teacher, config, setup.batch, mesh)
    if teacher is not None and teacher.config is not None and teaching is not None and teaching.compiled is not None:
        programs.append((teaching.compiled, teacher.config))
    hbm = _memory(config, setup, step, teaching) | {"capacity": device.hbm_bytes}
    fits = hbm["peak"] <= device.hbm_bytes and all(program.fits for program, _ in programs)
    costs = [read_costs(program.text or "") for program, _ in programs] if fits else []
    kernels = [_kernel_flops(config, each, cost) for (_, each), cost in zip(programs, costs, strict=False)]
    tokens = recipe.data.sequences_per_batch * recipe.data.sequence_length
    return Plan(
        topology=topology,
        device=device,
        num_devices=len(devices),
        hbm=hbm,
        tokens=tokens,
        model_flops=flops_per_token(recipe, model_config) * tokens,
        costs=reduce(operator.add, costs) if fits else None,
        kernel_flops=sum(flops for flops, _ in kernels),
        kernel_passes_flops=sum(flops for _, flops in kernels),
        teacher_costs=costs[1] if len(costs) > 1 else None,
        teacher_kernel_passes_flops=kernels[1][1] if len(kernels) > 1 else 0.0,
    )


def _memory(config: TrainConfig, setup: TrainingSetup, step: Compiled, teaching: Teaching | None) -> dict[str, int]:
    """Returns what fills the memory of a device, in bytes. The programs of teacher and student take turns."""
    adapters = bytes_per_device(setup.state.params) if config.recipe.trains_adapters else 0
    head = 0 if setup.frozen.teacher_head is None else bytes_per_device(setup.frozen.teacher_head)
    hbm = {
        "weights": bytes_per_device(setup.frozen.rest) + bytes_per_device(setup.state.params) - adapters,
        "adapters": adapters,
        "optimizer": bytes_per_device(setup.state.opt_state),
    }
    own, peak = sum(hbm.values()), step.peak_bytes
    if teaching is not None:
        hbm["teacher"] = teaching.bytes if teaching.compiled is not None else head
        # The head is an argument of the step and one of the teacher's weights: it is there once.
        peak += hbm["teacher"] - head
        if teaching.compiled is not None:
            temporaries = teaching.compiled.peak_bytes - teaching.weights_in_program
            peak = max(peak, own + hbm["teacher"] + temporaries)
    if rollouts := rollout_bytes(config, setup):
        hbm["rollouts"] = rollouts
        peak += rollouts
    return hbm | {"temporaries": peak - sum(hbm.values()), "peak": peak}


def abstract_setup(
    config: TrainConfig, model_config: ModelConfig, mesh: Mesh, teacher_head: jax.ShapeDtypeStruct | None = None
) -> TrainingSetup:
    """Makes the setup of a run with shapes in place of arrays. Call it outside the mesh's context."""

    def make() -> Qwen35:
        model = Qwen35(model_config, **model_options(config), rngs=nnx.Rngs(0))
        if config.recipe.lora is not None:
            lora.add(model, config.recipe.lora, config.recipe.seed)
        return model

    return make_setup(config, abstract_model(make, mesh), mesh, abstract_state, teacher_head=teacher_head)


def _kernel_flops(config: TrainConfig, model_config: ModelConfig, costs: Costs) -> tuple[float, float]:
    """Counts the FLOPs of the kernels on one device, and the same for each pass of the matrix unit."""
    text, mesh, length = model_config.text, config.layout.mesh, config.recipe.data.sequence_length
    sequences = _micro_batch_size(config) // (mesh.data * mesh.fsdp)

    def calls(name: str) -> int:
        return sum(count for kernel, count in costs.without_cycles.items() if name in kernel)

    # Half of the square of every sequence, by causality.
    square = 2 * sequences * text.num_attention_heads // mesh.tensor * text.head_dim * length**2 / 2 / mesh.context
    frame, in_frames = _frame_kernels(config, model_config, is_backward=calls("splash_mha_dq") > 0)
    attention = sum(
        factor * (square * max(calls(name) - in_frames.get(name, 0), 0) + frame * in_frames.get(name, 0))
        for name, factor in _ATTENTION_PRODUCTS.items()
    )
    heads = text.linear_num_value_heads // mesh.tensor
    chunk = 2 * sequences * heads * length / mesh.context * gated_delta.CHUNK_SIZE**2
    products, passes = (
        sum(factors[i] * calls(name) for name, factors in gated_delta.KERNEL_PRODUCTS.items()) for i in (0, 1)
    )
    return attention + chunk * products, attention + chunk * passes


def _frame_kernels(
    config: TrainConfig, model_config: ModelConfig, *, is_backward: bool
) -> tuple[float, dict[str, int]]:
    """Returns the FLOPs of one product in a call of the tower's kernels, and how often the program calls each.

    Their names are those of the decoder's. A call is for the patches of one sequence, each of which attends to an image
    of the most pixels.
    """
    recipe, tower, mesh = config.recipe, model_config.vision, config.layout.mesh
    vision = recipe.data.vision
    if vision is None or tower is None:
        return 0.0, {}
    patches, kernels = vision.patches_per_sequence, splash.num_frame_kernels(vision.patches_per_sequence)
    largest = min(vision.max_pixels // tower.patch_size**2, patches)
    # Of two kernels a row of patches takes one.
    product = 2 * patches * largest * tower.hidden_size / mesh.tensor / kernels
    blocks = tower.depth * kernels * recipe.data.sequences_per_batch // (mesh.data * mesh.fsdp)
    if not is_backward or vision_passes(recipe) == 1:
        return product, {"splash_mha_fwd": blocks}
    forward = blocks if config.layout.remat == "none" else 2 * blocks
    return product, {"splash_mha_fwd": forward, "splash_mha_dq": blocks, "splash_mha_dkv": blocks}
