"""Saves a model as a Hugging Face checkpoint: the source's files, with our tensors written over in place."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from qwen35_jax import lora
from qwen35_jax.config import ModelConfig
from qwen35_jax.distributed import to_host, wait
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.load import match_tensors
from qwen35_jax.hf.names import TensorSpec, TreePath
from qwen35_jax.hf.safetensors import DTYPES, Stored, checkpoint_files, other_files, read_checkpoint
from qwen35_jax.model import Qwen35
from qwen35_jax.storage import new_folder


def save(model: Qwen35, out_dir: str | Path, source: str | Path) -> Path:
    """Writes the model into a new folder that is complete the moment it appears.

    Everything of the source that is not ours (configuration, tokenizer, template, vision tensors, names, order and
    metadata of the files) is copied byte for byte; each of our tensors is written over its original in the dtype that
    it has there. Adapters are merged into what is written, in float32, and stay as they are in the model. Saving an
    unchanged model gives the source's files byte for byte, if its weights were stored in the source's dtype or wider.

    Under several processes all of them call this; the first one writes.

    Args:
      out_dir: a folder that does not exist yet, or is empty.
      source: the checkpoint that the model was loaded from: a folder, or a hub repository.

    Raises:
      FileNotFoundError: the source is not at hand.
      ValueError: ``out_dir`` holds files, the source is another model's or damaged, or adapters cannot be merged.
    """
    lora.check_mergeable(model)
    folder = find_folder(source)
    stored = read_checkpoint(folder)
    _, table = match_tensors(ModelConfig.from_hf(folder), stored, folder)
    tensors = _host_tensors(model, table, folder)
    if jax.process_index() == 0:
        _write(tensors, stored, folder, out_dir)
    else:
        for _ in tensors:
            pass
    wait(f"saved {out_dir}")
    return Path(out_dir)


def _write(
    tensors: Iterator[tuple[TensorSpec, np.ndarray]], stored: dict[str, Stored], folder: Path, out_dir: str | Path
) -> None:
    with new_folder(out_dir) as copy:
        for file in [*other_files(folder), *checkpoint_files(folder)]:
            shutil.copyfile(file, copy / file.name)
        for spec, value in tensors:
            place = stored[spec.name]
            with (copy / place.file.name).open("r+b") as stream:
                stream.seek(place.offset)
                stream.write(np.ascontiguousarray(value, DTYPES[place.dtype]).view(np.uint8))
        _check_same_tensors(read_checkpoint(copy), stored)


def _check_same_tensors(written: dict[str, Stored], stored: dict[str, Stored]) -> None:
    for name in sorted(written.keys() | stored.keys()):
        found, wanted = (
            None if name not in tensors else (tensors[name].shape, tensors[name].dtype, tensors[name].file.name)
            for tensors in (written, stored)
        )
        if found != wanted:
            raise ValueError(f"the export has {name} as {found}, the source as {wanted}; the source changed meanwhile.")


def _host_tensors(model: Qwen35, table: dict[str, TensorSpec], folder: Path) -> Iterator[tuple[TensorSpec, np.ndarray]]:
    """Returns every tensor of the table that is ours, on the host and in the checkpoint's layout, one at a time."""
    weights = nnx.state(model, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))
    params = dict(nnx.to_flat_state(weights))
    adapted = dict(lora.adapted_layers(model))
    ours = [spec for spec in table.values() if spec.path is not None]
    _check_same_model(params, ours, folder)

    def host(spec: TensorSpec) -> np.ndarray:
        layer = adapted.get(spec.path[:-1])
        if layer is not None:
            return to_host(lora.merged_weight(layer, spec.row))
        value = params[spec.path][...]
        return to_host(value if spec.row is None else value[spec.row])

    return ((spec, spec.to_file(host(spec))) for spec in ours)


def _check_same_model(params: dict[TreePath, nnx.Variable], ours: list[TensorSpec], folder: Path) -> None:
    wanted = {spec.path: tuple(spec.shape[axis] for axis in spec.axes) for spec in ours}
    stacked = {spec.path for spec in ours if spec.row is not None}
    found = {path: param.shape[1:] if path in stacked else param.shape for path, param in params.items()}
    for path in sorted(wanted.keys() | found.keys(), key=str):
        if wanted.get(path) != found.get(path):
            raise ValueError(
                f"the model is not the one in {folder}: {'.'.join(map(str, path))} is "
                f"{found.get(path, 'absent')} in the model and {wanted.get(path, 'absent')} in the source; "
                "give the checkpoint that the model was loaded from."
            )
