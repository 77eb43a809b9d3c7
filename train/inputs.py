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
from train.observe.notes import find_notes
from train.settle import settle

logger = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What a run reads, found and checked."""

    config: TrainConfig
    """The settings with every default decided."""
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
    settled, groups = settle(config, model_config)
    for note in find_notes(recipe, settled.recipe, groups, has_mtp_head=model_config.text.mtp.num_hidden_layers > 0):
        logger.info(note)
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
    batches.set_state(start)
    return Inputs(settled, folder, model_config, tokenizer, batches, sequences)
