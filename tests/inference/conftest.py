"""A tiny random model and a small tokenizer, for the tests of generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.config import FULL, LINEAR
from qwen35_jax.model import Qwen35
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import make_mesh, named_sharding


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """Almost a token a byte, so that characters beyond ASCII span several tokens."""
    folder = build_tiny_tokenizer(["user assistant\n"] * 4, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def make_model():
    """Makes, on a mesh, a float32 model of two periods, each of one DeltaNet and one attention layer.

    Other sizes may be named.
    The short period halves the time to compile. Matrices have a gain of about 1: with the initial ones every layer is
    nearly the identity, and greedy text repeats its last token.
    """
    usual = {"num_hidden_layers": 4, "layer_types": (LINEAR, FULL) * 2}

    def value(path: tuple, param: nnx.Variable, rng: np.random.Generator) -> np.ndarray:
        normal = rng.standard_normal(param.shape, np.float32)
        if path[-1] == "A_log":
            return np.log(rng.uniform(0.05, 4.0, param.shape)).astype(np.float32)
        if "norm" in path[-2] or path[-1] in ("dt_bias", "bias"):
            return 0.2 * normal + (path[-3:-1] == ("linear_attn", "norm"))
        if path[0] == "vision":
            return _vision_value(path, normal)
        return normal * {"embed_tokens": 0.1, "conv1d": 0.4}.get(path[-2], param.shape[-2] ** -0.5)

    def make(mesh: jax.sharding.Mesh, *, tied: bool = True, vision: bool = False, deep=(), **sizes) -> Qwen35:
        text = dataclasses.replace(PRESETS["tiny"].text, **usual | sizes)
        tower = dataclasses.replace(PRESETS["tiny"].vision, deepstack_visual_indexes=deep)
        config = dataclasses.replace(PRESETS["tiny"], text=text, vision=tower, tie_word_embeddings=tied)
        rng = np.random.default_rng(0)
        with jax.set_mesh(mesh):
            graphdef, state = nnx.split(
                nnx.eval_shape(lambda: Qwen35(config, dtype=jnp.float32, vision=vision, rngs=nnx.Rngs(0)))
            )
            for path, param in nnx.to_flat_state(state):
                param.set_value(jax.device_put(value(path, param, rng), named_sharding(param, mesh)))
            return nnx.merge(graphdef, state)

    return make


def _vision_value(path: tuple, normal: np.ndarray) -> np.ndarray:
    """Scales a weight of the tower so that pictures differ in what it makes of them."""
    if path[1] == "patch_embed":
        return normal * normal[..., 0].size ** -0.5
    return normal * (0.3 if path[1] == "pos_embed" else normal.shape[-2] ** -0.5)


@pytest.fixture(scope="session")
def seeing_model(make_model) -> Qwen35:
    """A model with a tower whose inner block feeds the decoder's second layer too."""
    return make_model(make_mesh(), vision=True, deep=(0,))


@pytest.fixture(scope="session")
def model(make_model) -> Qwen35:
    return make_model(make_mesh())


@pytest.fixture(scope="session")
def prompts(model):
    rng = np.random.default_rng(0)
    return [rng.integers(30, 500, length).tolist() for length in (1, 3, 17, 40, 16, 33, 2, 100)]
