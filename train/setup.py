"""What a training step is made of, from the settings of a run and its model: the same for a run and for its plan."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.stages import Wrapped

from qwen35_jax import lora
from qwen35_jax.config import ModelConfig
from qwen35_jax.model import Qwen35
from train.batch import Fields, abstract_batch, vision_fields
from train.config import Recipe, TrainConfig
from train.optim import make_optimizer, make_schedule
from train.signals.live import LiveTeacher
from train.state import Frozen, TrainState, count_parameters, split_model, stack_masks
from train.step import make_step, make_sums

MakeState = Callable[[nnx.State, optax.GradientTransformation, Mesh], TrainState]


class TrainingSetup(NamedTuple):
    """What the loop works on."""

    graphdef: nnx.GraphDef
    state: TrainState
    frozen: Frozen
    step: Wrapped
    """Compiled at its first call, or ahead of it."""
    batch: Mapping[str, jax.ShapeDtypeStruct]
    """Shapes and placement of a batch."""
    terms: tuple[str, ...]
    """The names of what is minimised; the main term comes first."""
    sums: Wrapped
    """The terms of a batch without training, for validation; there may be more of them."""
    num_trained: int
    """How many numbers train."""
    teacher: LiveTeacher | None = None
    """What adds the signal to a batch on the mesh; None where there is no teacher, or the batch holds its signal."""

    def model(self, state: TrainState) -> Qwen35:
        """Returns the model with the parameters of a state."""
        return nnx.merge(self.graphdef, state.params, self.frozen.rest)


def make_setup(
    config: TrainConfig,
    model: Qwen35,
    mesh: Mesh,
    make_state: MakeState,
    *,
    teacher_head: Any = None,
) -> TrainingSetup:
    """Splits a model, which has its adapters, into what trains and the rest, and makes its state and step.

    Args:
      model: of arrays or of shapes.
      make_state: ``train.state.init_state``, or ``abstract_state`` for shapes.
      teacher_head: the weight of a teacher's output head, an array or a shape too.

    Raises:
      ValueError: nothing would train.
    """
    recipe, layout = config.recipe.decide(), config.layout
    adapters, chosen = recipe.lora is not None, {"train": recipe.train, "train_mtp": recipe.objective.trains_mtp}
    graphdef, params, rest = split_model(model, adapters=adapters, **chosen)
    masks = None if adapters else stack_masks(model, params, **chosen)
    tx, schedule = make_optimizer(recipe.optim, recipe.num_steps), make_schedule(recipe.optim, recipe.num_steps)
    state = make_state(params, tx, mesh)
    objective = recipe.objective.make(loss_chunk=layout.loss_chunk, remat=layout.remat)
    step = make_step(
        graphdef,
        objective,
        tx,
        schedule,
        seed=recipe.seed,
        dropout=recipe.lora is not None and recipe.lora.dropout > 0,
        state=state,
        health=recipe.health,
        masks=masks,
    )
    batch = abstract_batch(
        sequences=recipe.data.sequences_per_batch,
        tokens=recipe.data.sequence_length,
        accumulation=recipe.accumulation,
        mesh=mesh,
        fields=batch_fields(recipe, model.config),
    )
    validation = recipe.objective.make(loss_chunk=layout.loss_chunk, remat=layout.remat, validates=True)
    sums = make_sums(graphdef, validation, state=state)
    num_trained = sum(match.parameters for match in lora.table(model)) if adapters else count_parameters(params, masks)
    frozen, terms = Frozen(rest, teacher_head), tuple(name for name, weight in objective.weights.items() if weight)
    return TrainingSetup(graphdef, state, frozen, step, batch, terms, sums, num_trained)


def batch_fields(recipe: Recipe, model: ModelConfig) -> Fields:
    """Returns the arrays of a batch: those of the objective and, where the data hold images, those of their patches."""
    fields, vision = recipe.objective.batch_fields, recipe.data.vision
    if vision is None or model.vision is None:
        return fields
    tower = model.vision
    patch_dim = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
    return {**fields, **vision_fields(vision.patches_per_sequence, patch_dim)}


def model_options(config: TrainConfig) -> dict[str, Any]:
    """Returns what the settings say about how a model is made, as arguments of ``load`` and of ``Qwen35``."""
    recipe = config.recipe
    return {
        "dtype": recipe.model.dtype,
        "param_dtype": recipe.param_dtype,
        "delta_rule": config.layout.delta_rule,
        "vision": recipe.data.vision is not None,
    }
