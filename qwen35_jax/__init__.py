"""Qwen3.5 in JAX: load a Hugging Face checkpoint, train, evaluate, and save it back with nothing lost."""

import importlib
from typing import TYPE_CHECKING

from qwen35_jax.interrupts import end_quietly_while_importing

if TYPE_CHECKING:
    from qwen35_jax.config import ModelConfig
    from qwen35_jax.hf.load import load
    from qwen35_jax.hf.save import save
    from qwen35_jax.inference.engine import Engine
    from qwen35_jax.inference.sampling import SamplingParams
    from qwen35_jax.model import Qwen35
    from qwen35_jax.presets import PRESETS

end_quietly_while_importing()

_HOMES = {
    "Engine": "inference.engine",
    "ModelConfig": "config",
    "PRESETS": "presets",
    "Qwen35": "model",
    "SamplingParams": "inference.sampling",
    "load": "hf.load",
    "save": "hf.save",
}

__all__ = ["PRESETS", "Engine", "ModelConfig", "Qwen35", "SamplingParams", "load", "save"]


def __getattr__(name: str):
    """Imports a public name when it is first used, so that ``import qwen35_jax`` stays instant (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qwen35_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"qwen35_jax.{_HOMES[name]}"), name)


def __dir__():
    return sorted(__all__)
