"""The format of a run directory, and how the model of a run is read back from it.

A run directory holds the run record ``config.json``, whose ``recipe`` says what was trained, and a folder
``checkpoints/``. In it every saved step has a folder, which is named by its number. The item ``state`` of such a folder
holds arrays by their dotted path in the training state. The paths of the trained parameters begin with ``params.``. A
step is whole if all files that its ``manifest.json`` lists are there in the sizes that it gives.

The directory lies on a disk or in a bucket. A bucket cannot rename, so there a save fills the folder of its step from
the beginning; the save is finished when the folder holds ``commit_success.txt``.
"""

import contextlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from qwen35_jax import gcs, lora, ocdbt
from qwen35_jax.best import METRICS, best_step, finished_entries
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.load import load
from qwen35_jax.hf.safetensors import read_checkpoint
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.tokenizer import TOKENIZER_FILES
from qwen35_jax.storage import file_digest, fingerprint, write_json

RECORD = "config.json"
CHECKPOINTS = "checkpoints"
EXPORT = "export"
MANIFEST = "manifest.json"
STATE = "state"
DATA = "data"
COMMIT = "commit_success.txt"
# Orbax writes the last two after the manifest; nothing is restored from them.
_UNLISTED = (MANIFEST, "_CHECKPOINT_METADATA", COMMIT)
# Without these and the arrays' own files nothing can be restored.
_NEEDED = (f"{DATA}/metadata", f"{STATE}/_METADATA", f"{STATE}/{ocdbt.MANIFEST}")
_PARAMS = "params"

Step = int | Literal["best"]
Folder = Path | epath.Path
"""On a disk, or in a bucket."""


def saved_steps(checkpoints: Folder) -> list[int]:
    """Lists the steps in a folder of checkpoints whose saves were finished, whole or not.

    On a disk, folders of unfinished saves have more than the number in their names.
    """
    if gcs.is_address(checkpoints):
        objects = (name.split("/") for name in gcs.list_files(checkpoints))
        return sorted(int(step) for step, *rest in objects if step.isdigit() and rest == [COMMIT])
    return sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdigit())


def whole_steps(checkpoints: Folder) -> list[int]:
    """Lists the steps that can be restored, in ascending order."""
    steps = saved_steps(checkpoints)
    # Each takes two requests of a bucket.
    with ThreadPoolExecutor(8) as pool:
        damages = list(pool.map(lambda step: find_damage(checkpoints / str(step)), steps))
    return [step for step, damage in zip(steps, damages, strict=True) if damage is None]


def write_manifest(step_folder: Folder) -> None:
    """Lists the files of a step with their sizes. Call it when all of them are written.

    Raises:
      BucketError: a bucket has lost one of them.
    """
    sizes = _sizes(step_folder)
    if gcs.is_address(step_folder):
        _check_kept(step_folder, sizes)
        gcs.write_bytes(step_folder / MANIFEST, json.dumps(sizes, indent=2).encode())
    else:
        write_json(Path(step_folder / MANIFEST), sizes)


def _check_kept(step_folder: Folder, sizes: Mapping[str, int]) -> None:
    """Compares the files of a step with those that its arrays need, since a listing shows only what there is."""
    needed = dict.fromkeys(_NEEDED, 1)
    if all(name in sizes for name in needed):
        files = ocdbt.needed_files(str(step_folder / STATE))
        needed |= {f"{STATE}/{name}": size for name, size in files.items()}
    for name, size in needed.items():
        if sizes.get(name, 0) < size:
            raise gcs.BucketError(
                f"{step_folder / name} is not there although it was written: the bucket loses writes.", fault=True
            )


def find_damage(step_folder: Folder) -> str | None:
    """Says why a step cannot be restored, or returns None if it is whole."""
    path = step_folder / MANIFEST
    try:
        wanted = json.loads(gcs.read_bytes(path) if gcs.is_address(path) else path.read_bytes())
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so its files cannot be told to be all there"
    except ValueError:
        return f"its {MANIFEST} is cut short"
    present = _sizes(step_folder)
    for name, size in wanted.items():
        if name not in present:
            return f"{name} is missing"
        if present[name] != size:
            return f"{name} has {present[name]} bytes instead of {size}"
    return None


def _sizes(folder: Folder) -> dict[str, int]:
    if gcs.is_address(folder):
        sizes = gcs.file_sizes(folder)
    else:
        paths = sorted(Path(folder).rglob("*"))
        files = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
    return {name: size for name, size in sizes.items() if name not in _UNLISTED}


def storage_errors(folder: Folder) -> contextlib.AbstractContextManager[None]:
    """Turns what orbax raises about a folder in a bucket into a ``BucketError``; errors about a disk pass."""
    return gcs.bucket_errors(folder) if gcs.is_address(folder) else contextlib.nullcontext()


def name_arrays(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a tree by dotted names, which do not depend on the classes of its containers."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(_key_name(key) for key in path): leaf for path, leaf in leaves}


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise AssertionError(f"unknown kind of tree key: {key!r}")


class BaseIdentity(NamedTuple):
    """What tells one base checkpoint from another, wherever it lies."""

    model: str
    """Fingerprint of configuration and weights."""
    tokenizer: Mapping[str, str]
    """Digests of the tokenizer's files and the chat template, by name."""


def identify_base(folder: Path) -> BaseIdentity:
    """Returns the identity of a checkpoint."""
    weights = [path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name == "config.json"]
    present = (folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
    return BaseIdentity(fingerprint(weights), {path.name: file_digest(path)[:16] for path in present})


class TrainedModel(NamedTuple):
    """The model as a step of training left it."""

    model: Qwen35
    source: Path
    """The checkpoint that training started from."""
    step: int
    adapter: bool
    """Whether adapters were trained, rather than all weights."""
    record: Mapping[str, Any]
    """The run record."""


def load_run(
    run_dir: str | Path, *, step: int | Literal["best"] | None = None, mesh: Mesh | None = None
) -> TrainedModel:
    """Loads the base checkpoint of a run and puts the parameters of a step in place.

    The optimizer's state is not read.

    Args:
      run_dir: the ``--workdir`` of the run, on a disk or in a bucket.
      step: which checkpoint; by default the newest whole one. ``best`` is that with the best evaluation.
      mesh: where parameters are placed; by default one device.

    Raises:
      ValueError: not a run directory, no such step, a checkpoint that does not fit its base, or a base whose weights,
        tokenizer or chat template changed since.
      FileNotFoundError: the base checkpoint is not at hand.
    """
    run = open_run(run_dir)
    record = _record_of(run)
    step = _choose_step(run, record, step)
    settings, adapter = record["recipe"]["model"], record["recipe"].get("lora")
    source = find_folder(settings["path"])
    _check_base(source, record)
    sees = record["recipe"].get("data", {}).get("vision") is not None
    model = load(source, settings["dtype"], mesh, param_dtype=stored_dtype(source), vision=sees)
    if adapter is not None:
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in adapter.items()
        }
        lora.add(model, lora.LoraConfig(**fields), seed=0)
    tree = {_PARAMS: nnx.state(model)}
    arrays = name_arrays(tree)
    arrays |= _restore(run.checkpoints / str(step) / STATE, arrays)
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(tree), arrays.values())[_PARAMS])
    return TrainedModel(model, source, step, adapter is not None, record)


class RunFolder(NamedTuple):
    """Where the parts of a run lie."""

    name: str
    """Where the user says that it lies."""
    files: Path
    """The folder of its record and metrics; of a run in a bucket, that of their copies."""
    checkpoints: Folder


def open_run(run_dir: str | Path) -> RunFolder:
    """Finds the parts of a run on a disk or in a bucket. Whether it is a run is not checked.

    Raises:
      BucketError: the bucket cannot be read, or holds no run of this name.
    """
    if not gcs.is_address(run_dir):
        path = Path(run_dir).absolute()
        return RunFolder(str(path), path, path / CHECKPOINTS)
    address = str(run_dir).rstrip("/")
    return RunFolder(address, gcs.local_copy(address, (RECORD, METRICS)), bucket_folder(address) / CHECKPOINTS)


def bucket_folder(address: str) -> epath.Path:
    """Returns an address in the form that orbax works with."""
    gcs.filesystem()  # The first path decides through which library all of them are reached.
    return epath.Path(address)


def read_metrics(run_dir: str | Path, step: int) -> dict[str, Any]:
    """Returns the entry of a step in ``metrics.jsonl``; it is empty where there is none."""
    entries = [entry for entry in finished_entries(open_run(run_dir).files / METRICS) if entry.get("step") == step]
    return entries[-1] if entries else {}


def _check_base(folder: Path, record: Mapping[str, Any]) -> None:
    """Compares a base checkpoint with the one that the run record identifies; records of old runs may not do so."""
    found, recorded = identify_base(folder), record.get("identity") or {}
    files = recorded.get("tokenizer", found.tokenizer)
    changed = ["weights or config.json"] if recorded.get("model", found.model) != found.model else []
    changed += [name for name in sorted({*files, *found.tokenizer}) if files.get(name) != found.tokenizer.get(name)]
    if changed:
        raise ValueError(
            f"{folder} is not what the run started from: {', '.join(changed)} differ; put back the files of the base "
            "checkpoint."
        )


def stored_dtype(folder: Path) -> str:
    """Returns the dtype of a checkpoint's matrices. Weights of this dtype can be saved again without rounding."""
    dtypes = {stored.dtype for stored in read_checkpoint(folder).values() if len(stored.shape) == 2}
    return {"BF16": "bfloat16", "F16": "float16"}.get(dtypes.pop(), "float32") if len(dtypes) == 1 else "float32"


def read_record(run_dir: str | Path) -> dict[str, Any]:
    """Returns the run record, of whose recipe ``model`` and ``lora`` are read here.

    Raises:
      ValueError: the folder holds no run record, or one of an earlier version.
      BucketError: the bucket cannot be read, or holds no run of this name.
    """
    return _record_of(open_run(run_dir))


def _record_of(run: RunFolder) -> dict[str, Any]:
    path = f"{run.name}/{RECORD}"
    try:
        record = json.loads((run.files / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        why = "it has no config.json" if run.files.exists() else "it does not exist"
        raise ValueError(f"{run.name} is not the directory of a training run: {why}.") from err
    except ValueError as err:
        raise ValueError(f"{path} is not that of a training run ({err}).") from err
    if isinstance(record, dict) and "lora" in record and "recipe" not in record:
        raise ValueError(f"{path} was written by an earlier version; export the run with that version.")
    try:
        path_of_base = record["recipe"]["model"]["path"]
    except (TypeError, KeyError) as err:
        is_model = isinstance(record, dict) and "architectures" in record
        what = "the configuration of a model" if is_model else "no record of a run"
        raise ValueError(
            f"{run.name} is not the directory of a training run: its config.json is {what}; give what --workdir was."
        ) from err
    if not isinstance(path_of_base, str):
        raise ValueError(f"{path} is not that of a training run: model.path is {path_of_base!r}.")
    return record


def _choose_step(run: RunFolder, record: dict[str, Any], step: Step | None) -> int:
    whole = whole_steps(run.checkpoints)
    if not whole:
        raise ValueError(f"{run.checkpoints} holds no whole checkpoint.")
    if step == "best":
        return best_step(run.files, record, whole, name=run.name)
    if step is not None and step not in whole:
        raise ValueError(f"{run.name} has no whole checkpoint of step {step}; it has {', '.join(map(str, whole))}.")
    return whole[-1] if step is None else step


def _restore(folder: Folder, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Reads the trained parameters. Each goes to the devices of the array whose place it takes."""
    shapes = {}
    for name, leaf in stored_arrays(folder).items():
        if not name.startswith(f"{_PARAMS}."):
            continue
        if name not in arrays or arrays[name].shape != tuple(leaf.shape):
            parameter = name.removeprefix(f"{_PARAMS}.").removesuffix(".value")
            raise ValueError(
                f"{folder}: {parameter} of shape {list(leaf.shape)} has no place in the base checkpoint that "
                "config.json names; it is not the one that training started from."
            )
        shapes[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=arrays[name].sharding)
    return restore_arrays(folder, shapes)


def stored_arrays(folder: Folder) -> dict[str, Any]:
    """Returns shape and dtype of every array in the item ``state`` of a step, by name."""
    # The handler makes its own kind of path of any path, here and below.
    with storage_errors(folder):
        return dict(ocp.PyTreeCheckpointHandler().metadata(folder).tree)  # pyrefly: ignore[bad-argument-type]


def restore_arrays(folder: Folder, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads some arrays of the item ``state`` of a step, as the shapes say with dtype and placement."""
    arguments = ocp.checkpoint_utils.construct_restore_args(shapes)
    wanted = ocp.args.PyTreeRestore(shapes, restore_args=arguments, partial_restore=True)
    with storage_errors(folder):
        return ocp.PyTreeCheckpointHandler().restore(folder, args=wanted)  # pyrefly: ignore[bad-argument-type]


def read_data_state(step_folder: Folder) -> dict[str, Any]:
    """Returns the position in the data that a step was saved with."""
    with storage_errors(step_folder):
        return ocp.JsonCheckpointHandler().restore(step_folder / DATA)  # pyrefly: ignore[bad-argument-type, bad-return]
