"""What a training step is made of, from the settings of a run and its model: the same for a run and for its plan."""

from collections.abc import Callable
from typing import NamedTuple

import optax
from flax import nnx
from jax.sharding import Mesh

from qwen35_jax.model import Qwen35
from train.config import SFTConfig
from train.losses import Batch, Objective
from train.optim import make_optimizer, make_schedule
from train.state import TrainState, split_model
from train.step import Step, abstract_batch, make_step

MakeState = Callable[[nnx.State, optax.GradientTransformation, Mesh], TrainState]


class Parts(NamedTuple):
    """What the loop works on."""

    graphdef: nnx.GraphDef
    state: TrainState
    frozen: nnx.State
    step: Step
    batch: Batch
    """Shapes and placement of a batch."""


def make_parts(cfg: SFTConfig, model: Qwen35, objective: Objective, mesh: Mesh, make_state: MakeState) -> Parts:
    """Splits a model, which has its adapters, into what trains and the rest, and makes its state and step.

    Args:
      model: of arrays or of shapes.
      make_state: ``train.state.init_state``, or ``abstract_state`` for shapes.

    Raises:
      ValueError: nothing would train.
    """
    graphdef, params, frozen = split_model(model, adapters=cfg.lora is not None, train_mtp=cfg.mtp.weight > 0)
    tx, schedule = make_optimizer(cfg.optim, cfg.steps), make_schedule(cfg.optim, cfg.steps)
    state = make_state(params, tx, mesh)
    dropout = cfg.lora is not None and cfg.lora.dropout > 0
    step = make_step(graphdef, objective, tx, schedule, seed=cfg.seed, dropout=dropout, state=state, health=cfg.health)
    batch = abstract_batch(
        rows=cfg.data.rows_per_batch, tokens=cfg.data.sequence_length, accumulation=cfg.accumulation, mesh=mesh
    )
    return Parts(graphdef, state, frozen, step, batch)
