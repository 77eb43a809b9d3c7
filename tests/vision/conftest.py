"""A tiny checkpoint with a tower of three blocks, the reference model that wrote it, and ours."""

import dataclasses

import pytest

from qwen35_jax.config import FULL, LINEAR
from qwen35_jax.hf.load import load
from tests.hf.helpers import write_reference
from tests.reference import tiny_config


@pytest.fixture(scope="session")
def config():
    """Two periods of one DeltaNet and one attention layer; a tower whose grid of positions is 6 by 6."""
    text = tiny_config(num_hidden_layers=4, layer_types=(LINEAR, FULL) * 2)
    tower = dataclasses.replace(text.vision, depth=3, hidden_size=48, num_heads=2, num_position_embeddings=36)
    return dataclasses.replace(text, vision=tower)


@pytest.fixture(scope="session")
def pair(config, tmp_path_factory):
    """The reference with weights that all matter, the folder of its checkpoint, and ours."""
    folder = tmp_path_factory.mktemp("vision") / "base"
    reference = write_reference(folder, config)
    return reference, folder, load(folder, "float32")
