"""Writes a random checkpoint of any dense size tensor by tensor, so that no model is in memory."""

import dataclasses
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qwen35_jax.config import ModelConfig
from qwen35_jax.config_vision import VisionConfig
from qwen35_jax.hf.names import TensorSpec, tensor_table
from qwen35_jax.hf.safetensors import DTYPES, INDEX_FILE, SINGLE_FILE, header_bytes, other_files
from qwen35_jax.layers.parameters import A_RANGE
from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from qwen35_jax.storage import new_folder

_BLOCK = 2**22
# The first pattern found in a tensor's name decides; everything else is normal.
_CONSTANTS = (
    (r"dt_bias$|linear_attn\.norm\.weight$|visual.*norm\d?\.weight$", 1.0),
    (r"norm[a-z_]*\.weight$|\.bias$", 0.0),
)


def create_checkpoint(
    config: ModelConfig,
    out_dir: str | Path,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    tokenizer_from: str | Path | None = None,
    shard_bytes: int | None = None,
) -> Path:
    """Writes a checkpoint with the initial weights of the reference, vision and MTP tensors included.

    Tensors lie in the order of the published files: float32 first, then by name. Each is drawn from the seed and its
    own name, so that neither the order nor the number of files changes a value.

    Args:
      out_dir: a folder that does not exist yet, or is empty.
      dtype: ``bfloat16`` or ``float32``, for the tensors that the published files store in bfloat16.
      tokenizer_from: a folder whose tokenizer, template and processor files are copied. Where it has no processor files
        and the model has a tower, those of the published checkpoints are written, with the tower's patches.
      shard_bytes: most bytes of tensors in a file, a checkpoint shard; ``None`` writes a single file.

    Raises:
      ValueError: ``out_dir`` holds files, the dtype is unknown, or the layers of this configuration do not exist yet.
      FileNotFoundError: there is no folder ``tokenizer_from``.

    Source of the initial values: ``Qwen3_5PreTrainedModel._init_weights`` in transformers.
    """
    stored = {"bfloat16": "BF16", "float32": "F32"}.get(dtype)
    if stored is None:
        raise ValueError(f"dtype={dtype!r}; a checkpoint is written in 'bfloat16' or 'float32'.")
    specs = [
        spec if spec.dtype == "F32" else dataclasses.replace(spec, dtype=stored)
        for spec in tensor_table(config).values()
    ]
    specs.sort(key=lambda spec: (spec.dtype != "F32", spec.name))
    copied = [] if tokenizer_from is None else _tokenizer_files(Path(tokenizer_from))
    shards = _shards(specs, shard_bytes)
    names = [SINGLE_FILE]
    if shard_bytes is not None:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    written = dataclasses.replace(config, text=dataclasses.replace(config.text, dtype=dtype))

    with new_folder(out_dir) as folder:
        (folder / "config.json").write_text(json.dumps(written.to_hf(), indent=4), encoding="utf-8")
        if shard_bytes is not None:
            (folder / INDEX_FILE).write_text(_index(names, shards), encoding="utf-8")
        for file in copied:
            shutil.copyfile(file, folder / file.name)
        if config.vision is not None:
            _write_processor_files(config.vision, folder)
        for name, shard in zip(names, shards, strict=True):
            with (folder / name).open("wb") as stream:
                stream.write(header_bytes((spec.name, spec.dtype, spec.shape) for spec in shard))
                for spec in shard:
                    for block in _values(spec, config, seed):
                        stream.write(block.astype(DTYPES[spec.dtype]).tobytes())
    return Path(out_dir)


def _index(names: list[str], shards: list[list[TensorSpec]]) -> str:
    weight_map = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
    total = sum(_num_bytes(spec) for shard in shards for spec in shard)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2)


def _tokenizer_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder to take the tokenizer from.")
    return [file for file in other_files(folder) if file.name not in ("config.json", INDEX_FILE)]


def _write_processor_files(tower: VisionConfig, folder: Path) -> None:
    """Writes the files that say how pictures become patches, where the folder has none."""
    sizes = {
        "patch_size": tower.patch_size,
        "temporal_patch_size": tower.temporal_patch_size,
        "merge_size": tower.spatial_merge_size,
    }
    files = {"preprocessor_config.json": ImageSettings, "video_preprocessor_config.json": VideoSettings}
    for name, settings in files.items():
        if not any((folder / other).exists() for other in (name, "processor_config.json")):
            (folder / name).write_text(json.dumps(settings(**sizes).to_json(), indent=4), encoding="utf-8")


def _num_bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape)) * DTYPES[spec.dtype].itemsize


def _shards(specs: list[TensorSpec], shard_bytes: int | None) -> list[list[TensorSpec]]:
    """Cuts the list into checkpoint shards, where the next tensor would make one too large."""
    shards, size = [[]], 0
    for spec in specs:
        size += _num_bytes(spec)
        if shard_bytes is not None and shards[-1] and size > shard_bytes:
            shards.append([])
            size = _num_bytes(spec)
        shards[-1].append(spec)
    return shards


def _values(spec: TensorSpec, config: ModelConfig, seed: int) -> Iterator[np.ndarray]:
    """Yields the tensor's values in the order of the file, in float32, a few megabytes at a time."""
    rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    tower = config.vision if ".visual." in spec.name else config.text
    assert tower is not None, f"{spec.name} belongs to a tower"
    fill = next((value for pattern, value in _CONSTANTS if re.search(pattern, spec.name)), None)
    total = int(np.prod(spec.shape))
    for start in range(0, total, _BLOCK):
        count = min(_BLOCK, total - start)
        if fill is not None:
            yield np.full(count, fill, np.float32)
        elif spec.name.endswith("A_log"):
            yield np.log(rng.uniform(*A_RANGE, count)).astype(np.float32)
        else:
            yield rng.standard_normal(count, np.float32) * np.float32(tower.initializer_range)
