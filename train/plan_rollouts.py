"""What rollouts add to the plan of a run: the memory of the engine that samples them."""

import jax.numpy as jnp

from qwen35_jax.inference.sizes import EngineSizes, bytes_of_slot, bytes_of_token
from train.config import Distillation, TrainConfig
from train.rollouts.sampler import engine_options
from train.setup import TrainingSetup


def rollout_bytes(config: TrainConfig, setup: TrainingSetup) -> int:
    """Returns the bytes that the engine's pages and slots take on one device while a step runs; 0 without rollouts.

    Its programs and those of the step take turns, and need less than the step. They are not counted.

    Args:
      setup: of arrays or of shapes.
    """
    objective = config.recipe.objective
    if not isinstance(objective, Distillation) or objective.rollouts is None:
        return 0
    model = setup.model(setup.state)
    text = model.config.text
    sizes = EngineSizes.of(
        model,
        page_size=None,
        prefill_chunk=None,
        steps_per_call=1,
        draft_vocabulary=None,
        **engine_options(objective.rollouts, config.recipe.data, model),
    )
    itemsize, tensor = jnp.dtype(model.dtype).itemsize, config.layout.mesh.tensor
    token = bytes_of_token(text, itemsize, drafts=bool(sizes.num_drafts), tensor=tensor) // tensor
    slots = sizes.slots // sizes.shards
    return sizes.num_pages * sizes.page_size * token + slots * bytes_of_slot(text, itemsize, sizes.num_drafts)
