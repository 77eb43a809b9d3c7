"""Saves a model as a Hugging Face checkpoint: copies the source's files and writes our tensors over theirs."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from qwen35_jax import lora
from qwen35_jax.config import ModelConfig
from qwen35_jax.distributed import to_host, wait
from qwen35_jax.hf.assembly import arrays_of, by_array, check_cover, shape_of, take
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.load import match_tensors
from qwen35_jax.hf.names import TensorSpec, TreePath
from qwen35_jax.hf.safetensors import DTYPES, Stored, checkpoint_files, other_files, read_checkpoint
from qwen35_jax.model import Qwen35
from qwen35_jax.storage import new_folder


def save(model: Qwen35, out_dir: str | Path, source: str | Path, *, files: Mapping[str, bytes] | None = None) -> Path:
    """Writes the model into a new folder, which appears only when it is complete.

    Everything of the source that is not ours (configuration, tokenizer, template, names, order and metadata of the
    files, and the vision tensors if the model was loaded without them) is copied byte for byte. Each of our tensors is
    written over its original, in the dtype that it has there. Adapters are merged in float32 into what is written, and
    stay as they are in the model. An unchanged model gives the source's files byte for byte, if its weights were stored
    in the source's dtype or a wider one.

    Under several processes all of them call this; the first one writes.

    Args:
      out_dir: a folder that does not exist yet, or is empty.
      source: the checkpoint that the model was loaded from: a folder, or a hub repository.
      files: contents by name that are written in place of the source's files, or beside them.
        ``hf.chat_files.chat_files(source)`` makes those of a model that was trained on conversations.

    Raises:
      FileNotFoundError: the source is not at hand.
      ValueError: ``out_dir`` holds files, the source is another model's or damaged, or adapters cannot be merged.
    """
    lora.check_mergeable(model)
    folder = find_folder(source)
    stored = read_checkpoint(folder)
    _, table = match_tensors(ModelConfig.from_hf(folder), stored, folder)
    weights = nnx.state(model, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))
    arrays = dict(item for path, param in nnx.to_flat_state(weights) for item in arrays_of(lora.tree_path(path), param))
    ours = [spec for spec in table.values() if model.vision is not None or spec.path[0] != "vision"]
    _check_same_model(arrays, ours, folder)
    tensors = host_tensors(arrays, ours, dict(lora.adapted_layers(model)))
    if jax.process_index() == 0:
        write_tensors(tensors, stored, folder, out_dir, files)
    else:
        for _ in tensors:
            pass
    wait("saved")  # The processes of a run may each have a folder of their own.
    return Path(out_dir)


def host_tensors(
    arrays: Mapping[TreePath, jax.Array], specs: Iterable[TensorSpec], adapted: Mapping[TreePath, lora.Layer]
) -> Iterator[tuple[TensorSpec, np.ndarray]]:
    """Yields tensors on the host and in the checkpoint's layout, one at a time; adapters are merged into them.

    Args:
      arrays: the parameters by their paths in the model.
      adapted: the layers with adapters by theirs.
    """
    for spec in specs:
        layer = adapted.get(spec.layer_path) if "weight" in spec.path else None  # a bias has no adapter
        value = take(arrays[spec.path], spec.index) if layer is None else lora.merged_weight(layer, spec.index)
        yield spec, spec.to_file(to_host(value))


def write_tensors(
    tensors: Iterator[tuple[TensorSpec, np.ndarray]],
    stored: dict[str, Stored],
    folder: Path,
    out_dir: str | Path,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Copies a checkpoint into a new folder and writes these tensors over their originals.

    Args:
      stored: the tensors of the checkpoint in ``folder``.
      files: contents that take the place of those in ``folder``.
    """
    with new_folder(out_dir) as copy:
        for file in [*other_files(folder), *checkpoint_files(folder)]:
            shutil.copyfile(file, copy / file.name)
        for name, content in (files or {}).items():
            (copy / name).write_bytes(content)
        for spec, value in tensors:
            place = stored[spec.name]
            with (copy / place.file.name).open("r+b") as stream:
                stream.seek(place.offset)
                stream.write(np.ascontiguousarray(value, DTYPES[place.dtype]).tobytes())
        _check_same_tensors(read_checkpoint(copy), stored)


def _check_same_tensors(written: dict[str, Stored], stored: dict[str, Stored]) -> None:
    for name in sorted(written.keys() | stored.keys()):
        found, wanted = (
            None if name not in tensors else (tensors[name].shape, tensors[name].dtype, tensors[name].file.name)
            for tensors in (written, stored)
        )
        if found != wanted:
            raise ValueError(f"the export has {name} as {found}, the source as {wanted}; the source changed meanwhile.")


def _check_same_model(arrays: dict[TreePath, jax.Array], ours: list[TensorSpec], folder: Path) -> None:
    groups = by_array(ours)
    for path in sorted(arrays.keys() | groups.keys(), key=str):
        found = arrays[path].shape if path in arrays else None
        wanted = shape_of(groups[path]) if path in groups else None
        if wanted is None or wanted != found:
            raise ValueError(
                f"the model is not the one in {folder}: {'.'.join(map(str, path))} is {found or 'absent'} in the model "
                f"and {wanted or 'absent'} in the source; give the checkpoint that the model was loaded from."
            )
        check_cover(groups[path], wanted)
