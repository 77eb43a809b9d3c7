"""What a run reads: base checkpoint, tokenizer and data, found and checked before anything large is loaded."""

import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from qwen35_jax.config import ModelConfig
from qwen35_jax.distributed import gather, raise_together
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.load import match_tensors
from qwen35_jax.hf.safetensors import read_checkpoint
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.sharding import check_mesh
from train.batch import sequences_of_process
from train.config import Distillation, Recipe, TrainConfig
from train.data.epochs import batches_of_epochs
from train.data.measure import Measurement, check_lost, describe, measure
from train.data.pipeline import BatchIterator, make_batches
from train.data.validation import ValidationData, read_validation
from train.data.vision import vision_reader
from train.observe.warnings import many_epochs
from train.rollouts import HeldOutPrompts, RolloutBatches
from train.settle import Settled, announce, settle
from train.teacher import Teacher, find_teacher

logger = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What a run reads, found and checked."""

    settled: Settled
    """The settings with the layers of adapters decided."""
    folder: Path
    """The base checkpoint."""
    model_config: ModelConfig
    tokenizer: Tokenizer
    batches: BatchIterator | RolloutBatches
    found: Measurement | None
    """What the start found in the data; None where only their prompts are used."""
    sequences: range
    """The sequences of every batch that this process feeds."""
    validation: ValidationData | None
    teacher: Teacher | None = None
    """Of a distillation."""
    held_out: HeldOutPrompts | None = None
    """What every validation of an on-policy run answers."""


def check_inputs(config: TrainConfig, mesh: Mesh) -> Inputs:
    """Finds checkpoint, tokenizer and data, and checks that they fit each other, the mesh and the settings.

    Raises:
      ValueError, OSError: they do not; the message names file and remedy.
    """
    recipe = config.recipe
    data = recipe.data
    folder = find_folder(recipe.model.path)
    model_config, _ = match_tensors(ModelConfig.from_hf(folder), read_checkpoint(folder), folder)
    check_mesh(
        model_config.text,
        mesh.shape,
        sequences=data.sequences_per_batch // recipe.accumulation,
        tokens=data.sequence_length,
    )
    recipe.objective.check_model(model_config.text, folder)
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.check_vocabulary(model_config.text.vocab_size)
    vision = vision_reader(data.vision, folder, model_config, tokenizer)
    teacher, objective = None, recipe.objective
    if isinstance(objective, Distillation):
        teacher = find_teacher(recipe, objective, folder=folder, student=model_config, tokenizer=tokenizer)
        has_head = model_config.text.mtp.num_hidden_layers > 0
        known = dataclasses.replace(objective, teacher=teacher.settings, has_mtp_head=has_head)
        config = config.replace(objective=known)
    settled = settle(config, model_config)
    sequences = sequences_of_process(sequences=data.sequences_per_batch, accumulation=recipe.accumulation, mesh=mesh)
    signals = None if teacher is None else teacher.store
    rollouts = objective.rollouts if isinstance(objective, Distillation) else None
    if rollouts is None:
        batches = make_batches(data, tokenizer, sequences, signals, vision)
    else:
        batches = RolloutBatches(data, rollouts, tokenizer, sequences, vision, seed=recipe.seed)
    found = _look_at_data(batches, recipe)
    validation = read_validation(data, tokenizer, sequences, batches.corpus, signals)
    held_out = None
    if isinstance(batches, RolloutBatches) and rollouts is not None and validation is not None:
        held_out = HeldOutPrompts(validation, rollouts, data, tokenizer, sequences, batches.answer)
    return Inputs(settled, folder, model_config, tokenizer, batches, found, sequences, validation, teacher, held_out)


def _look_at_data(batches: BatchIterator | RolloutBatches, recipe: Recipe) -> Measurement | None:
    """Measures the documents that are trained on, and tells how far the steps of the run go through them.

    Raises:
      ValueError: too many of them would be left out.
    """
    steps, data = recipe.steps, batches
    if isinstance(batches, RolloutBatches):
        for line in batches.describe(steps):
            logger.info("rollouts: %s", line)
        data = batches.data
        if data is None:
            return None
    documents = data.corpus
    config, found = documents.config, measure(documents, whole=False)
    check_lost(found, config)
    for line in describe(found, config, steps):
        logger.info("data: %s", line)
    if steps is not None and config.epochs is None:
        for warning in many_epochs(steps / found.steps_of_epoch(config), steps):
            logger.warning(warning)
    return found


def settle_steps(config: TrainConfig, inputs: Inputs) -> TrainConfig:
    """Returns the settings with every default decided, and the number of steps that they lead to.

    These are the steps given or, if that is less or none are given, as many as the epochs fill.

    Raises:
      ValueError: a document cannot be used, and the policy for its reason is ``error``.
    """
    recipe = config.recipe
    if recipe.data.epochs is not None:
        # One process counts; the data are the same for all.
        assert inputs.found is not None, "rollouts know no epochs"
        counted = None
        with raise_together():
            if jax.process_index() == 0:
                counted = batches_of_epochs(inputs.batches.corpus, inputs.tokenizer, inputs.found)
        batches = gather(counted)[0]
        steps = batches if recipe.steps is None else min(recipe.steps, batches)
        logger.info("data: %d epochs fill %d steps; the run takes %d", recipe.data.epochs, batches, steps)
        recipe = dataclasses.replace(recipe, steps=steps)
    settled = inputs.settled.config.replace(steps=recipe.steps)
    return announce(recipe, inputs.settled._replace(config=settled))
