"""What a run reads: base checkpoint, tokenizer and data, found and checked before anything large is loaded."""

import logging
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.load import match_tensors
from qwen35_jax.hf.safetensors import read_checkpoint
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.sharding import check_mesh
from train.batch import sequences_of_process
from train.config import TrainConfig
from train.data.pipeline import BatchIterator, make_batches
from train.observe.warnings import many_epochs
from train.settle import Settled, settle

logger = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What a run reads, found and checked."""

    settled: Settled
    """The settings with the layers of adapters decided."""
    folder: Path
    """The base checkpoint."""
    model_config: ModelConfig
    tokenizer: Tokenizer
    batches: BatchIterator
    sequences: range
    """The sequences of every batch that this process feeds."""


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
    settled = settle(config, model_config)
    tokenizer = Tokenizer.from_pretrained(folder)
    largest = max(tokenizer.backend.get_vocab(with_added_tokens=True).values())
    if largest >= model_config.text.vocab_size:
        raise ValueError(
            f"the tokenizer of {folder} has ids up to {largest}, but the model's vocab_size is "
            f"{model_config.text.vocab_size}; use the tokenizer that belongs to the checkpoint."
        )
    sequences = sequences_of_process(sequences=data.sequences_per_batch, accumulation=recipe.accumulation, mesh=mesh)
    batches = make_batches(data, tokenizer, sequences)
    # The first batch shows whether rows can be tokenised and are short enough, before anything large is loaded.
    start = batches.get_state()
    next(batches)
    for warning in many_epochs(_epochs_of_a_batch(batches) * recipe.steps, recipe.steps):
        logger.warning(warning)
    batches.set_state(start)
    return Inputs(settled, folder, model_config, tokenizer, batches, sequences)


def _epochs_of_a_batch(batches: BatchIterator) -> float:
    """Estimates how much of an epoch a batch takes, after the first one. What the packer still holds does not count."""
    shards = batches.get_state()["shards"].values()
    held = [{place for sequence in (*shard["open"], *shard["ready"]) for place, _ in sequence} for shard in shards]
    used = sum(shard["taken"] - len(places) for shard, places in zip(shards, held, strict=True))
    return used / sum(shard["taken"] for shard in shards) * batches.report()["epochs"]
