"""Loads a Hugging Face checkpoint tensor by tensor into placed arrays."""

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from qwen35_jax.config import ModelConfig, MTPConfig
from qwen35_jax.hf.adapter import load_adapter
from qwen35_jax.hf.assembly import arrays_of, by_array, check_cover, read_part
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.names import TensorSpec, TreePath, tensor_table, tied_head
from qwen35_jax.hf.safetensors import Stored, read_checkpoint
from qwen35_jax.lora import tree_path
from qwen35_jax.model import Qwen35
from qwen35_jax.ops.gated_delta import DeltaRule
from qwen35_jax.sharding import Axes, array_sharding, check_mesh, make_mesh

logger = logging.getLogger(__name__)


def load(
    path: str | Path,
    dtype: DTypeLike = "bfloat16",
    mesh: Mesh | None = None,
    adapter: str | Path | None = None,
    *,
    param_dtype: DTypeLike | None = None,
    delta_rule: DeltaRule = "auto",
    vision: bool = True,
) -> Qwen35:
    """Loads a model from a Hugging Face folder or hub repository.

    The files' headers tell names and shapes, which are checked before any array is read. Then each device gets its
    array shard of each parameter straight from the files, so that the host never holds more than the model's bytes and
    a few tensors. A checkpoint without any ``mtp.*`` tensor, as transformers writes it, loads without an MTP head and
    with a warning.

    Args:
      dtype: what the model computes in.
      mesh: where parameters are placed; by default one device.
      adapter: a folder with an adapter in PEFT's format, added after loading.
      param_dtype: what weights are stored in, by default ``dtype``. ``A_log`` and the gated norms are always float32.
      delta_rule: how DeltaNet layers compute their recurrence (see ``ops/gated_delta/README.md``).
      vision: whether to load the vision tower that the checkpoint may have. Without it the model reads text alone, and
        ``save`` copies the tower's tensors from the source.

    Raises:
      FileNotFoundError: no such folder or repository, or a file that it should hold is absent.
      ValueError: the architecture is unknown, a file is damaged, or a tensor is missing, unexpected or misshapen;
        or the mesh does not divide the model.
    """
    dtype = _float_dtype(dtype)
    param_dtype = dtype if param_dtype is None else _float_dtype(param_dtype)
    folder = find_folder(path)
    config = ModelConfig.from_hf(folder)
    stored = read_checkpoint(folder)
    config, table = match_tensors(config, stored, folder)
    mesh = make_mesh() if mesh is None else mesh
    check_mesh(config.text, mesh.shape)

    with jax.set_mesh(mesh):
        options = {"dtype": dtype, "param_dtype": param_dtype, "delta_rule": delta_rule, "vision": vision}
        model = nnx.eval_shape(lambda: Qwen35(config, **options, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(model)
        read_parameters(state, table, stored, mesh)
        model = nnx.merge(graphdef, state)
        if adapter is not None:
            load_adapter(model, adapter)
    return model


def match_tensors(
    config: ModelConfig, stored: dict[str, Stored], folder: Path
) -> tuple[ModelConfig, dict[str, TensorSpec]]:
    """Compares a checkpoint's headers with the name table of its configuration.

    Returns:
      The configuration, without the MTP head if the checkpoint has none, and the table.

    Raises:
      ValueError: a tensor is missing, unexpected or misshapen, or a tied head differs from the embedding.
    """
    if config.text.mtp.num_hidden_layers and not any(name.startswith("mtp.") for name in stored):
        logger.warning("%s holds no mtp.* tensors; the model is built without its MTP head.", folder)
        text = dataclasses.replace(config.text, mtp=MTPConfig(num_hidden_layers=0))
        config = dataclasses.replace(config, text=text)
    table = tensor_table(config, nested=any(name.startswith("model.language_model.") for name in stored))
    if config.tie_word_embeddings and "lm_head.weight" in stored:
        table["lm_head.weight"] = tied_head(config)
    missing = [name for name in table if name not in stored]
    if missing:
        raise ValueError(
            f"{folder} lacks the tensor {missing[0]}{_and_more(missing)}, which its config.json asks for; "
            "the checkpoint is incomplete or the configuration is another model's."
        )
    unexpected = sorted(name for name in stored if name not in table)
    if unexpected:
        raise ValueError(
            f"{folder} holds the tensor {unexpected[0]}{_and_more(unexpected)}, which its config.json has no place "
            "for; the configuration is another model's, or the weights are not Qwen3.5's."
        )
    for name, spec in table.items():
        if stored[name].shape != spec.shape:
            raise ValueError(
                f"{stored[name].file}: {name} has shape {list(stored[name].shape)}, but by config.json it should "
                f"have {list(spec.shape)}."
            )
    if config.tie_word_embeddings and "lm_head.weight" in stored:
        _check_tied_head(stored, table)
    return config, table


def _check_tied_head(stored: dict[str, Stored], table: dict[str, TensorSpec]) -> None:
    path = table["lm_head.weight"].path
    embedding = next(name for name, spec in table.items() if spec.path == path)
    head, embed = stored["lm_head.weight"], stored[embedding]
    blocks = zip(head.blocks(), embed.blocks(), strict=True)
    if head.dtype != embed.dtype or not all(np.array_equal(ours, theirs) for ours, theirs in blocks):
        raise ValueError(
            f"{head.file}: lm_head.weight differs from {embedding}, although config.json ties them; "
            "set tie_word_embeddings to false, or remove lm_head.weight."
        )


def read_parameters(
    state: nnx.State, table: Mapping[str, TensorSpec], stored: Mapping[str, Stored], mesh: Mesh
) -> None:
    """Replaces the shapes that ``state`` holds by arrays on the mesh, read from the files shard by shard."""
    specs = by_array(spec for spec in table.values() if spec.name in stored)

    def read(path: TreePath, shape: jax.ShapeDtypeStruct, axes: Axes) -> jax.Array:
        check_cover(specs[path], shape.shape)
        part = partial(read_part, specs[path], stored, shape=shape.shape, dtype=shape.dtype)
        return jax.make_array_from_callback(shape.shape, array_sharding(axes, shape.shape, mesh), part)

    def size(item: tuple[TreePath, nnx.Variable]) -> int:
        return sum(array.size for _, array in arrays_of(*item))

    # The largest first: its bytes on the way into place are then on top of nothing else.
    params = [(tree_path(path), param) for path, param in nnx.to_flat_state(state)]
    for path, param in sorted(params, key=size, reverse=True):
        axes = param.get_metadata("logical_axes")
        shapes, structure = jax.tree.flatten(param.get_value())
        paths = [array_path for array_path, _ in arrays_of(path, param)]
        arrays = [read(array_path, shape, axes) for array_path, shape in zip(paths, shapes, strict=True)]
        param.set_value(jax.tree.unflatten(structure, arrays))


def _float_dtype(dtype: DTypeLike) -> np.dtype:
    allowed = ("bfloat16", "float16", "float32")
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in allowed:
        raise ValueError(f"dtype={name!r}; choose one of {', '.join(allowed)}.")
    return jnp.dtype(name)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
