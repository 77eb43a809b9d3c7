"""A training run from its settings to its export; what is minimised is the caller's."""

import contextlib
import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

from qwen35_jax import lora
from qwen35_jax.config import ModelConfig
from qwen35_jax.distributed import check_shared, raise_together
from qwen35_jax.hf.adapter import save_adapter
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.load import load, match_tensors
from qwen35_jax.hf.safetensors import read_checkpoint
from qwen35_jax.hf.save import save
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.sharding import check_mesh, make_mesh
from qwen35_jax.storage import make_writable_folder
from train.checkpoint import Checkpoints
from train.config import SFTConfig, parse_steps
from train.data.pipeline import BatchIterator, make_batches
from train.loop import Schedule, run_steps
from train.losses import Objective
from train.metrics import MetricsWriter, plot_losses
from train.parts import Parts, make_parts
from train.preemption import watch_for_preemption
from train.record import check_resumable, make_record, write_record
from train.recorder import Recorder
from train.state import TrainState, abstract, count_parameters, init_state
from train.step import put_batch, rows_of_process
from train.throughput import Throughput
from train.trace import Trace

logger = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What a run reads, found and checked."""

    folder: Path
    model_config: ModelConfig
    tokenizer: Tokenizer
    batches: BatchIterator
    rows: range
    """The rows of every batch that this process feeds."""


def run(cfg: SFTConfig, workdir: Path, objective: Objective) -> None:
    """Trains into ``workdir``, from its newest checkpoint if it has one, and exports the result.

    Everything that can be wrong with the settings and the files is found before the model is loaded. Under several
    processes all of them call this; each reads its part of the weights and the data, and the first one writes
    what is not an array.

    Raises:
      ValueError: a setting, an input or the state of the directory does not allow the run.
      OSError: a file is missing or cannot be read.
      Preempted: SIGTERM came; the state is saved.
    """
    mesh = make_mesh(**dataclasses.asdict(cfg.mesh))
    if jax.process_count() > 1 and mesh.size != jax.device_count():
        raise ValueError(
            f"the mesh has {mesh.size} devices, but the {jax.process_count()} processes of the run have "
            f"{jax.device_count()}; every device must be in it: raise mesh.data or mesh.fsdp."
        )
    with raise_together():
        inputs = check_inputs(cfg, mesh)
        record = make_record(cfg, model_folder=inputs.folder, data_identity=inputs.batches.get_state()["identity"])
        check_workdir(workdir)
    with raise_together():
        check_shared(workdir)
        checkpoints, done = open_workdir(workdir, record, keep=cfg.checkpoint.keep)
    with jax.set_mesh(mesh):
        parts = build(cfg, inputs.folder, objective, mesh)
        if done is not None:
            # Shapes only, so that the initial state's memory is free before the restored one takes its place.
            parts = parts._replace(state=abstract(parts.state))
            state, data_state = checkpoints.restore(done, parts.state)
            parts = parts._replace(state=state)
            inputs.batches.set_state(data_state)
            logger.info("resumed after step %d of %s", done, workdir)
        if jax.process_index() == 0:
            write_record(workdir, record)
        state = _train(cfg, workdir, parts, inputs, checkpoints, mesh)
        checkpoints.close()
        logger.info("data: %s", json.dumps(inputs.batches.report()))
        if jax.process_index() == 0:
            plot_losses(workdir)
        if cfg.export:
            model = nnx.merge(parts.graphdef, state.params, parts.frozen)
            export(model, workdir / "export", source=inputs.folder, adapter=cfg.lora is not None)


def check_inputs(cfg: SFTConfig, mesh: Mesh) -> Inputs:
    """Finds checkpoint, tokenizer and data, and checks that they fit each other, the mesh and the settings.

    Raises:
      ValueError, OSError: they do not; the message names file and remedy.
    """
    folder = find_folder(cfg.model.path)
    model_config, _ = match_tensors(ModelConfig.from_hf(folder), read_checkpoint(folder), folder)
    check_mesh(
        model_config.text,
        mesh.shape,
        sequences=cfg.data.rows_per_batch // cfg.accumulation,
        tokens=cfg.data.sequence_length,
    )
    if cfg.mtp.weight and not model_config.text.mtp.num_hidden_layers:
        raise ValueError(
            f"{folder} has no MTP head (mtp.* tensors), but mtp.weight={cfg.mtp.weight}; set mtp.weight=0 or start "
            "from a checkpoint that has one."
        )
    tokenizer = Tokenizer.from_pretrained(folder)
    largest = max(tokenizer.backend.get_vocab(with_added_tokens=True).values())
    if largest >= model_config.text.vocab_size:
        raise ValueError(
            f"the tokenizer of {folder} has ids up to {largest}, but the model's vocab_size is "
            f"{model_config.text.vocab_size}; use the tokenizer that belongs to the checkpoint."
        )
    rows = rows_of_process(
        sequences=cfg.data.rows_per_batch, tokens=cfg.data.sequence_length, accumulation=cfg.accumulation, mesh=mesh
    )
    batches = make_batches(cfg.data, tokenizer, rows)
    # The first batch shows whether rows can be tokenised and are short enough, before anything large is loaded.
    start = batches.get_state()
    next(batches)
    batches.set_state(start)
    return Inputs(folder, model_config, tokenizer, batches, rows)


def check_workdir(workdir: Path) -> None:
    """Makes a run directory if it is absent.

    Raises:
      ValueError: it cannot be written, or holds something else.
    """
    make_writable_folder(workdir)
    # A run makes its folder of checkpoints before anything else; other processes may be trying the folder too.
    if any(not path.name.startswith(".") for path in workdir.iterdir()) and not (workdir / "checkpoints").is_dir():
        raise ValueError(
            f"{workdir} is not empty and holds no training run; choose another --workdir, or move it away."
        )


def open_workdir(workdir: Path, record: dict, *, keep: int) -> tuple[Checkpoints, int | None]:
    """Opens the checkpoints of a run directory and returns the step to resume from, if there is one.

    Raises:
      ValueError: the directory belongs to a run with other settings, or cannot be resumed.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", keep=keep)
    done = checkpoints.latest_whole_step()
    if done is not None:
        check_resumable(workdir, record)
    elif (workdir / "export").exists():
        raise ValueError(
            f"{workdir} holds an export but no checkpoint to resume from; choose another --workdir, or move it away."
        )
    return checkpoints, done


def build(cfg: SFTConfig, folder: Path, objective: Objective, mesh: Mesh) -> Parts:
    """Loads the model, adds the adapters, and makes state and step. Call it under the mesh.

    Raises:
      ValueError: a group of ``lora.targets`` matches nothing.
    """
    model = load(folder, cfg.model.dtype, mesh, param_dtype=cfg.param_dtype)
    if cfg.lora is not None:
        logger.info("adapters:\n%s", _table(lora.add(model, cfg.lora, cfg.seed)))
    parts = make_parts(cfg, model, objective, mesh, init_state)
    trainable = count_parameters(parts.state.params)
    logger.info("%s of %s parameters train", f"{trainable:,}", f"{trainable + count_parameters(parts.frozen):,}")
    return parts


def _table(matches: Sequence[lora.Match]) -> str:
    """Lays out the adapted modules, one kind a line."""
    heading = ("group", "module", "layers", "in x out", "parameters")
    body = [(m.group, m.module, str(m.count), "{} x {}".format(*m.shape), f"{m.parameters:,}") for m in matches]
    widths = [max(map(len, column)) for column in zip(heading, *body, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heading, *body))
    return "\n".join(line.rstrip() for line in lines)


def _train(
    cfg: SFTConfig, workdir: Path, parts: Parts, inputs: Inputs, checkpoints: Checkpoints, mesh: Mesh
) -> TrainState:
    """Compiles the step and runs the loop."""
    done = int(parts.state.step)
    if done >= cfg.steps:
        logger.info("%s is complete: step %d of %d", workdir, done, cfg.steps)
        return parts.state
    rows, tokens = cfg.data.rows_per_batch, cfg.data.sequence_length
    began = time.perf_counter()
    step = parts.step.lower(parts.state, parts.frozen, parts.batch).compile()
    logger.info("compiled the step in %.1f s", time.perf_counter() - began)
    put = partial(put_batch, accumulation=cfg.accumulation, mesh=mesh, num_rows=rows, first_row=inputs.rows.start)
    with (
        contextlib.closing(MetricsWriter(workdir, first_step=done + 1, last_step=cfg.steps)) as metrics,
        watch_for_preemption() as is_preempted,
        Trace(workdir / "profile", parse_steps(cfg.profile) if cfg.profile else range(0)) as trace,
    ):
        throughput = Throughput.of(cfg, inputs.model_config, mesh)
        recorder = Recorder(
            workdir, metrics, throughput, cfg.health, positions=rows * tokens, first_row=inputs.rows.start
        )
        return run_steps(
            parts.state,
            parts.frozen,
            step,
            inputs.batches,
            put,
            Schedule(cfg.steps, cfg.checkpoint.every, cfg.evaluate_every),
            checkpoints=checkpoints,
            recorder=recorder,
            trace=trace,
            is_preempted=is_preempted,
            evaluate=_evaluation(cfg, parts, inputs),
        )


def _evaluation(cfg: SFTConfig, parts: Parts, inputs: Inputs) -> Callable[[TrainState], Mapping[str, float]] | None:
    """Returns the run file's evaluation as a function of the state."""
    if cfg.evaluate is None:
        return None
    return lambda state: cfg.evaluate(nnx.merge(parts.graphdef, state.params, parts.frozen), inputs.tokenizer)


def export(model: Qwen35, out_dir: Path, *, source: Path, adapter: bool) -> None:
    """Writes a PEFT adapter or a whole Hugging Face folder; an earlier export gives way once the new one is whole."""
    first = jax.process_index() == 0
    new, old = out_dir.with_name(out_dir.name + ".new"), out_dir.with_name(out_dir.name + ".old")
    if first:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
    write: Callable[..., Any] = save_adapter if adapter else save
    write(model, new, source=source)
    if not first:
        return
    if out_dir.exists():
        out_dir.rename(old)
    new.rename(out_dir)
    shutil.rmtree(old, ignore_errors=True)
    logger.info("exported to %s", out_dir)
