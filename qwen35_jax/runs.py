"""Reads the model of a training run back from its directory: the base checkpoint and what a step had trained.

A run directory holds ``config.json``, whose ``recipe`` says what was trained, and one folder a step in
``checkpoints/``, whose item ``state`` holds the trained parameters under ``params.`` and their dotted path in the
model. A step is whole if the files that its ``manifest.json`` lists have the sizes it gives.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from qwen35_jax import lora
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.load import load
from qwen35_jax.hf.safetensors import read_checkpoint
from qwen35_jax.model import Qwen35

# What an orbax tree calls a variable of the model: the path of its array.
_PREFIX, _SUFFIX = "params.", ".value"


class TrainedModel(NamedTuple):
    """The model as a step left it."""

    model: Qwen35
    source: Path
    """The checkpoint that training started from."""
    step: int
    adapter: bool
    """Whether adapters were trained, rather than all weights."""


def load_run(run_dir: str | Path, *, step: int | None = None, mesh: Mesh | None = None) -> TrainedModel:
    """Loads the base checkpoint of a run and puts the parameters of a step in place.

    The optimizer's state is not read.

    Args:
      step: which checkpoint; by default the newest whole one.
      mesh: where parameters are placed; by default one device.

    Raises:
      ValueError: not a run directory, no such step, or a checkpoint that does not fit its base.
      FileNotFoundError: the base checkpoint is not at hand.
    """
    run_dir = Path(run_dir).absolute()
    recipe = _read_recipe(run_dir)
    step = _choose_step(run_dir, step)
    settings, adapter = recipe["model"], recipe.get("lora")
    source = find_folder(settings["path"])
    model = load(source, settings["dtype"], mesh, param_dtype=stored_dtype(source))
    if adapter is not None:
        lora.add(model, lora.LoraConfig(**adapter), seed=0)
    state = nnx.state(model)
    variables = {_PREFIX + ".".join(map(str, path)) + _SUFFIX: variable for path, variable in nnx.to_flat_state(state)}
    for name, value in _restore(run_dir / "checkpoints" / str(step) / "state", variables).items():
        variables[name].set_value(value)
    nnx.update(model, state)
    return TrainedModel(model, source, step, adapter is not None)


def stored_dtype(folder: Path) -> str:
    """Returns the dtype of a checkpoint's matrices; weights held in it can be saved again without rounding."""
    dtypes = {stored.dtype for stored in read_checkpoint(folder).values() if len(stored.shape) == 2}
    return {"BF16": "bfloat16", "F16": "float16"}.get(dtypes.pop(), "float32") if len(dtypes) == 1 else "float32"


def _read_recipe(run_dir: Path) -> dict[str, Any]:
    """Returns the recipe of the run record, of which ``model`` and ``lora`` are read here."""
    path = run_dir / "config.json"
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))["recipe"]
        if isinstance(recipe["model"]["path"], str):
            return recipe
    except FileNotFoundError as err:
        raise ValueError(f"{run_dir} is not the directory of a training run: it has no config.json.") from err
    except (ValueError, TypeError, KeyError) as err:
        raise ValueError(f"{path} is not that of a training run ({err!r}).") from err
    raise ValueError(f"{path} is not that of a training run: model.path is {recipe['model']['path']!r}.")


def _choose_step(run_dir: Path, step: int | None) -> int:
    # A folder that is still being written, or was left so, has more than the number in its name.
    folders = (path for path in (run_dir / "checkpoints").glob("*") if path.name.isdigit())
    whole = sorted(int(folder.name) for folder in folders if _is_whole(folder))
    if not whole:
        raise ValueError(f"{run_dir / 'checkpoints'} holds no whole checkpoint.")
    if step is not None and step not in whole:
        raise ValueError(f"{run_dir} has no whole checkpoint of step {step}; it has {', '.join(map(str, whole))}.")
    return whole[-1] if step is None else step


def _is_whole(folder: Path) -> bool:
    """Whether every file that the manifest lists is there in its full size."""
    try:
        sizes = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, ValueError):
        return False


def _restore(folder: Path, variables: dict[str, nnx.Variable]) -> dict[str, jax.Array]:
    """Reads the trained parameters, each onto the devices of the variable it belongs to."""
    handler = ocp.PyTreeCheckpointHandler()
    stored = handler.metadata(folder).tree
    trained = {name: leaf for name, leaf in stored.items() if name.startswith(_PREFIX)}
    shapes = {}
    for name, leaf in trained.items():
        if name not in variables or variables[name].shape != tuple(leaf.shape):
            parameter = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
            raise ValueError(
                f"{folder}: {parameter} of shape {list(leaf.shape)} has no place in the base checkpoint that "
                "config.json names; it is not the one that training started from."
            )
        shapes[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=variables[name][...].sharding)
    arguments = ocp.checkpoint_utils.construct_restore_args(shapes)
    return handler.restore(folder, args=ocp.args.PyTreeRestore(shapes, restore_args=arguments, partial_restore=True))
