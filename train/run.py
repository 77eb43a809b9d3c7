"""A training run from its settings to its export."""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from qwen35_jax import lora
from qwen35_jax.distributed import raise_together
from qwen35_jax.export import export_adapter, export_checkpoint
from qwen35_jax.hf.chat_files import chat_files
from qwen35_jax.hf.load import load
from qwen35_jax.inference.generate import Request
from qwen35_jax.liveness import call_at_end
from qwen35_jax.model import Qwen35
from qwen35_jax.runs import EXPORT, read_metrics
from qwen35_jax.storage import replace_folder
from train.agreement import AgreedBatches, check_agreement, check_takes_all_devices
from train.batch import Batch, HostBatch, put_batch
from train.best import Best, follow_best, make_outcome
from train.branch import Origin, branch, find_origin
from train.checkpoint import Checkpoints
from train.config import Distillation, TrainConfig
from train.config.options import parse_steps
from train.evaluation import make_evaluation
from train.inputs import Inputs, check_inputs, settle_steps
from train.loop import Schedule, Watch, run_steps
from train.observe.first_batch import check_first
from train.observe.metrics import MetricsWriter
from train.observe.reporter import Reporter
from train.observe.throughput import Throughput
from train.observe.trace import Trace
from train.observe.trackers import Trackers
from train.preemption import watch_for_preemption
from train.record import RunRecord, make_record, write_record
from train.rollouts import RolloutBatches
from train.samples import make_sample, read_prompts
from train.settle import load_start, make_watch
from train.setup import TrainingSetup, batch_fields, make_setup, model_options
from train.state import TrainState, abstract, count_parameters, init_state
from train.step import Step
from train.teacher import Heard, Teacher, hear
from train.workdir import Workdir, open_workdir, workdir_at

logger = logging.getLogger(__name__)


class Job(NamedTuple):
    """What a run works on, found and checked before the model is loaded."""

    config: TrainConfig
    """With every default decided."""
    workdir: Workdir
    mesh: Mesh
    inputs: Inputs
    record: RunRecord
    prompts: list[Request]
    """Of the samples."""
    trackers: Trackers


def run(config: TrainConfig, place: str | Path) -> None:
    """Trains into the run directory ``place``, from its newest checkpoint if it has one, and exports the result.

    Everything that can be wrong with the settings and the files is found before the model is loaded. Under several
    processes all of them call this. Each reads its share of the weights and the data, and the first one writes what is
    not an array.

    Raises:
      ValueError: a setting, an input or the state of the directory does not allow the run.
      OSError: a file is missing or cannot be read.
      Preempted: SIGTERM came; the state is saved.
    """
    mesh = config.layout.mesh.mesh()
    check_takes_all_devices(mesh)
    with raise_together():
        workdir = workdir_at(place)
        trackers = config.options.make_trackers()
        inputs = check_inputs(config, mesh)
    config = settle_steps(config, inputs)
    with raise_together():
        prompts = read_prompts(config, inputs)
        record = _make_record(config, inputs)
        origin = find_origin(config.recipe, workdir.checkpoints, model=record.base.model)
        workdir.check()
    with workdir.locked():
        _run_locked(Job(config, workdir, mesh, inputs, record, prompts, trackers), origin)


def _run_locked(job: Job, origin: Origin | None) -> None:
    """Trains and exports in a directory that this run has to itself."""
    options, workdir, inputs, record = job.config.options, job.workdir, job.inputs, job.record
    with raise_together():
        checkpoints, done = open_workdir(workdir, record, options.checkpoint)
    call_at_end(checkpoints.where_to_go_on)
    call_at_end(checkpoints.wait)
    check_agreement(record, done)
    best = follow_best(options, workdir.local, checkpoints, done)
    with jax.set_mesh(job.mesh):
        setup = build(job.config, inputs.folder, job.mesh, inputs.teacher)
        if done is not None:
            setup = _resume(setup, inputs, checkpoints, done)
            logger.info("resumed after step %d of %s", done, workdir)
        elif origin is not None:
            setup = setup._replace(state=branch(origin, setup.state, inputs.batches))
        if jax.process_index() == 0:
            write_record(workdir.local, record)
            workdir.push()
        state = _train(job, setup, checkpoints, best)
        if jax.process_index() == 0:
            write_record(workdir.local, record, make_outcome(job.config, int(state.step), best))
            workdir.push()
        logger.info("data, counted over all epochs: %s", json.dumps(inputs.batches.report()))
        if options.export_best and best is not None and best.step is not None:
            like = abstract(state)
            # The memory of the last state is free before the best one takes its place.
            state, setup = None, setup._replace(state=like)
            state, _ = checkpoints.restore(best.step, like)
            logger.info("the export is of the best step: %s", best)
        checkpoints.close()
        if options.export:
            export(setup.model(state), workdir, record, source=inputs.folder, step=int(state.step))


def _make_record(config: TrainConfig, inputs: Inputs) -> RunRecord:
    record = make_record(
        config,
        model_folder=inputs.folder,
        data_identity=inputs.batches.get_state()["identity"],
        validation_identity=None if inputs.validation is None else inputs.validation.identity,
        teacher_identity=None if inputs.teacher is None else inputs.teacher.identity,
        conversations=inputs.batches.corpus.has_conversations,
    )
    if record.conversations:
        chat_files(inputs.folder)  # What the export will need: a fault in these files is found now, not then.
    return record


def _resume(setup: TrainingSetup, inputs: Inputs, checkpoints: Checkpoints, step: int) -> TrainingSetup:
    """Restores the state of a step, and moves the data to its place."""
    # Shapes only, so that the initial state's memory is free before the restored one takes its place.
    setup = setup._replace(state=abstract(setup.state))
    state, data_state = checkpoints.restore(step, setup.state)
    inputs.batches.set_state(data_state)
    return setup._replace(state=state)


def build(config: TrainConfig, folder: Path, mesh: Mesh, teacher: Teacher | None = None) -> TrainingSetup:
    """Loads the model, adds the adapters, and makes state and step of settled settings. Call it under the mesh.

    Args:
      teacher: of a distillation; it is loaded too, unless its signal is stored.
    """
    model, recipe = load(folder, mesh=mesh, **model_options(config)), config.recipe
    heard = Heard() if teacher is None else hear(teacher, config, model, mesh)
    if recipe.lora is not None:
        logger.info("adapters:\n%s", _table(load_start(model, recipe)))
    setup = make_setup(config, model, mesh, init_state, teacher_head=heard.head)._replace(teacher=heard.live)
    whole = count_parameters((setup.state.params, setup.frozen.rest))
    logger.info("%s of %s parameters train", f"{setup.num_trained:,}", f"{whole:,}")
    return setup


def _table(matches: Sequence[lora.Match]) -> str:
    """Lays out the adapted modules, one line for each kind."""
    heading = ("group", "module", "layers", "in x out", "parameters")
    body = [(m.group, m.module, str(m.count), "{} x {}".format(*m.shape), f"{m.parameters:,}") for m in matches]
    widths = [max(map(len, column)) for column in zip(heading, *body, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heading, *body))
    return "\n".join(line.rstrip() for line in lines)


def _train(job: Job, setup: TrainingSetup, checkpoints: Checkpoints, best: Best | None) -> TrainState:
    """Compiles the step and runs the loop."""
    config, inputs, folder = job.config, job.inputs, job.workdir.local
    recipe, options = config.recipe, config.options
    done = int(setup.state.step)
    if _is_complete(job, done, best):
        return setup.state
    step = _compile(setup)
    if isinstance(inputs.batches, RolloutBatches):
        inputs.batches.sample_from(setup.model)
    with (
        contextlib.closing(_open_metrics(job, setup)) as metrics,
        watch_for_preemption() as is_preempted,
        Trace(folder / "profile", parse_steps(options.profile) if options.profile else range(0)) as trace,
    ):
        reporter = _make_reporter(job, setup, metrics)
        teach = None if setup.teacher is None else setup.teacher.teach
        put = _make_put(job, None if teach is None else partial(reporter.teach, teach))
        if done == 0 and isinstance(recipe.objective, Distillation):
            put = check_first(put, setup, config.layout, reporter.left_out)
        state = run_steps(
            setup.state,
            setup.frozen,
            step,
            AgreedBatches(inputs.batches),
            put,
            Schedule(recipe.num_steps, options.checkpoint.every, options.evaluate_every, options.samples.every),
            checkpoints=checkpoints,
            reporter=reporter,
            trace=trace,
            is_preempted=is_preempted,
            watch=Watch(
                make_evaluation(config, setup, inputs, _make_put(job, teach)),
                best,
                make_sample(options.samples, setup, inputs, job.prompts, folder),
            ),
        )
    if best is not None:
        if best.is_exhausted:
            logger.info(
                "stopped early after step %d: %d evaluations without a better one", int(state.step), best.waited
            )
        logger.info("%s", best)
    return state


def _compile(setup: TrainingSetup) -> Step:
    """Compiles the step and, where there is a live teacher, its program."""
    began = time.perf_counter()
    step = setup.step.lower(setup.state, setup.frozen, setup.batch).compile()
    logger.info("compiled the step in %.1f s", time.perf_counter() - began)
    if setup.teacher is not None:
        began = time.perf_counter()
        setup.teacher.compile(setup.batch)
        logger.info("compiled the teacher in %.1f s", time.perf_counter() - began)
    return step


def _make_put(job: Job, teach: Callable[[Batch], Batch] | None) -> Callable[[HostBatch], Batch]:
    """Returns what places a batch on the mesh and, where there is a live teacher, lets it add its signal."""
    recipe = job.config.recipe
    place = partial(
        put_batch,
        accumulation=recipe.accumulation,
        mesh=job.mesh,
        fields=batch_fields(recipe, job.inputs.model_config),
        num_sequences=recipe.data.sequences_per_batch,
        first_sequence=job.inputs.sequences.start,
    )
    if teach is None:
        return place

    def put(batch: HostBatch) -> Batch:
        placed = place(batch)
        return {**placed, **teach(placed)}

    return put


def _is_complete(job: Job, done: int, best: Best | None) -> bool:
    """Says of a run that has nothing left to train that it is complete."""
    steps = job.config.recipe.num_steps
    if done >= steps:
        logger.info("%s is complete: step %d of %d", job.workdir, done, steps)
        return True
    if best is not None and best.is_exhausted:
        logger.info("%s is complete: it stopped early after step %d; %s", job.workdir, done, best)
        return True
    return False


def _open_metrics(job: Job, setup: TrainingSetup) -> MetricsWriter:
    return MetricsWriter(
        job.workdir.local,
        first_step=int(setup.state.step) + 1,
        last_step=job.config.recipe.num_steps,
        terms=setup.terms,
        trackers=job.trackers,
        record=job.record.to_json(),
        publish=job.workdir.push,
    )


def _make_reporter(job: Job, setup: TrainingSetup, metrics: MetricsWriter) -> Reporter:
    recipe, inputs = job.config.recipe, job.inputs
    return Reporter(
        job.workdir.local,
        metrics,
        Throughput.of(job.config, inputs.model_config, job.mesh),
        recipe.health,
        terms=setup.terms,
        positions=recipe.data.sequences_per_batch * recipe.data.sequence_length,
        first_sequence=inputs.sequences.start,
        watch=make_watch(recipe, inputs.settled, setup.terms[0]),
    )


def export(model: Qwen35, workdir: Workdir, record: RunRecord, *, source: Path, step: int) -> None:
    """Writes a PEFT adapter or a whole Hugging Face folder; an earlier export gives way once the new one is whole."""
    first, out = jax.process_index() == 0, workdir.local / EXPORT
    new = out.with_name(out.name + ".new")
    if first:
        shutil.rmtree(new, ignore_errors=True)
    if record.config.recipe.lora is None:
        export_checkpoint(model, new, record.to_json(), source)
    else:
        export_adapter(model, new, record.to_json(), source, step=step, metrics=read_metrics(workdir.local, step))
    if first:
        replace_folder(out, new)
    workdir.publish_export()
    if first:
        logger.info("exported to %s/%s", workdir, EXPORT)
