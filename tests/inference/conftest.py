"""A tiny random model and a small tokenizer, for the tests of generation."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from qwen35_jax.config import FULL, LINEAR
from qwen35_jax.model import Qwen35
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing import Tokenizer
from qwen35_jax.processing.tiny_tokenizer import build_tiny_tokenizer
from qwen35_jax.sharding import make_mesh


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """Almost a token a byte, so that characters beyond ASCII span several tokens."""
    folder = build_tiny_tokenizer(["user assistant\n"] * 4, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def make_model():
    """Makes, on a mesh, a float32 model of two periods, each of one DeltaNet and one attention layer.

    The short period halves the time to compile. Matrices are enlarged to a gain of about 1: with the initial ones
    every layer is nearly the identity, and greedy text repeats its last token.
    """
    text = dataclasses.replace(PRESETS["tiny"].text, num_hidden_layers=4, layer_types=(LINEAR, FULL) * 2)
    config = dataclasses.replace(PRESETS["tiny"], text=text)

    def make(mesh: jax.sharding.Mesh) -> Qwen35:
        with jax.set_mesh(mesh):
            model = Qwen35(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
            state = nnx.state(model)
            nnx.update(model, jax.tree.map(lambda x: 6 * x if x.ndim >= 2 and x.shape[-1] >= 16 else x, state))
        return model

    return make


@pytest.fixture(scope="session")
def model(make_model) -> Qwen35:
    return make_model(make_mesh())
