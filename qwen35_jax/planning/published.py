"""Finds the sizes of a model that is to be planned for."""

from pathlib import Path

from qwen35_jax import gcs
from qwen35_jax.config import ModelConfig
from qwen35_jax.presets import PRESETS
from qwen35_jax.wording import did_you_mean


def find_config(path: str, name: str = "model.path") -> ModelConfig:
    """Returns the configuration of a checkpoint, or of a published one by its hub id; weights are not downloaded.

    Args:
      name: of the setting, for the message.

    Raises:
      ValueError: neither.
    """
    gcs.check_scheme(path)
    if gcs.is_address(path):
        return ModelConfig.from_hf(gcs.local_copy(path, ["config.json"]))
    if Path(path).is_dir():
        return ModelConfig.from_hf(path)
    for size, config in PRESETS.items():
        if path.lower() in (f"qwen/qwen3.5-{size}", f"qwen/qwen3.5-{size}-base"):
            return config
    sizes = [f"Qwen/Qwen3.5-{size.upper()}" for size, config in PRESETS.items() if config.text.moe is None]
    raise ValueError(
        f"{name}={path!r} is neither a local folder nor a published size; give a folder or one of "
        f"{', '.join(sizes)}.{did_you_mean(path, sizes)}"
    )
