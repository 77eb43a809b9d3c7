"""Begins a run with what a step of another run had trained.

The new run has a directory, a schedule and steps of its own. It takes over the trained parameters, the arrays of the
optimizer that have the same shapes and dtypes, and the place in the data, if both runs read them in the same order.
"""

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from qwen35_jax.runs import (
    STATE,
    Folder,
    RunFolder,
    name_arrays,
    open_run,
    read_data_state,
    restore_arrays,
    saved_steps,
    stored_arrays,
    whole_steps,
)
from train.config import Recipe
from train.data.pipeline import BatchIterator
from train.record import read_whole_record
from train.rollouts import RolloutBatches
from train.state import TrainState

logger = logging.getLogger(__name__)


class Origin(NamedTuple):
    """A step of a run to begin with."""

    run: RunFolder
    step: int

    @property
    def folder(self) -> Folder:
        return self.run.checkpoints / str(self.step)


def find_origin(recipe: Recipe, checkpoints: Folder, *, model: str) -> Origin | None:
    """Finds the step that ``branch_from`` names, unless the run has checkpoints of its own to go on from.

    Args:
      checkpoints: the run's own folder of them, which may be absent.
      model: the fingerprint of the base checkpoint.

    Raises:
      ValueError: there is no such run or whole step, or it started from another base checkpoint.
    """
    branch_from = recipe.branch_from
    if branch_from is None or saved_steps(checkpoints):
        return None
    run, _, step = branch_from.rpartition("@")
    origin = Origin(open_run(run), int(step))
    if not origin.run.files.is_dir():
        raise ValueError(f"branch_from={branch_from!r}: there is no directory {run}; give RUN@STEP of a training run.")
    recorded = read_whole_record(origin.run.files, run)
    if recorded["identity"]["model"] != model:
        raise ValueError(
            f"branch_from={branch_from!r}: that run started from another checkpoint, "
            f"{recorded['recipe']['model']['path']}; give it as --model.path."
        )
    whole = whole_steps(origin.run.checkpoints)
    if origin.step not in whole:
        raise ValueError(
            f"branch_from={branch_from!r}: that run has no whole checkpoint of step {step}, but of "
            f"{', '.join(map(str, whole)) or 'none'}."
        )
    return origin


def branch(origin: Origin, state: TrainState, batches: BatchIterator | RolloutBatches) -> TrainState:
    """Returns the state of a new run at step 0 with what was trained, and moves the data to the place of that step.

    Args:
      state: of step 0, as the new run makes it; its arrays are consumed.
      batches: stay at their start if the other run read other data.

    Raises:
      ValueError: that run trained other parameters.
    """
    stored = stored_arrays(origin.folder / STATE)
    tree = {"params": state.params, "opt_state": state.opt_state}
    params, moments = ({x: leaf for x, leaf in name_arrays(tree).items() if x.startswith(part)} for part in tree)
    theirs = {name for name in stored if name.startswith("params.")}
    unlike = sorted(
        (theirs ^ params.keys())
        | {name for name in theirs & params.keys() if not _is_alike(stored[name], params[name])}
    )
    if unlike:
        raise ValueError(
            f"branch_from={origin.run.name}@{origin.step}: that run trained other parameters than this one, such as "
            f"{unlike[0].removeprefix('params.')}; keep lora and train as they were, or export that step and start "
            "from it by --model.path."
        )
    wanted = params | {x: leaf for x, leaf in moments.items() if x in stored and _is_alike(stored[x], leaf)}
    shapes = {x: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for x, leaf in wanted.items()}
    for leaf in wanted.values():
        leaf.delete()  # so that memory need not hold both
    leaves = name_arrays(tree) | restore_arrays(origin.folder / STATE, shapes)
    tree = jax.tree.unflatten(jax.tree.structure(tree), leaves.values())
    lost = len(params) + len(moments) - len(wanted)
    anew = f"; {lost} arrays of its optimizer do not fit and begin anew" if lost else ""
    logger.info("begins with what step %d of %s had trained%s", origin.step, origin.run.name, anew)
    _go_on_in_data(origin, batches)
    return state._replace(params=tree["params"], opt_state=_restart_schedule(tree["opt_state"]))


def _restart_schedule(opt_state: optax.OptState) -> optax.OptState:
    """Returns an optimizer's state whose learning rate starts from the beginning."""

    def is_schedule(part: Any) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    def restart(part: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, part) if is_schedule(part) else part

    return jax.tree.map(restart, opt_state, is_leaf=is_schedule)


def _is_alike(stored: Any, leaf: jax.Array) -> bool:
    return tuple(stored.shape) == leaf.shape and stored.dtype == leaf.dtype


def _go_on_in_data(origin: Origin, batches: BatchIterator | RolloutBatches) -> None:
    theirs = read_data_state(origin.folder)
    if theirs["identity"] == batches.get_state()["identity"]:
        batches.set_state(theirs)
        logger.info("the data go on after batch %d of that run", theirs["batches"])
    else:
        logger.info("the data begin at their start, because that run read other data or in another order")
