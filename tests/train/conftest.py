"""A tiny float32 model, a packed batch with every kind of token, and their compiled gradients."""

import dataclasses
import json
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.config import FULL, LINEAR
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.model import Qwen35
from qwen35_jax.presets import PRESETS
from qwen35_jax.sharding import make_mesh
from tests.train.launching import LORA, SLOW_DATA, Command

ROWS, TOKENS = 8, 24


def small_config():
    """Returns the tiny preset at half its depth and width: most of a test's time is compilation."""
    tiny = PRESETS["tiny"]
    text = dataclasses.replace(
        tiny.text, hidden_size=32, intermediate_size=48, num_hidden_layers=4, layer_types=(LINEAR, FULL) * 2
    )
    return dataclasses.replace(tiny, text=text, vision=dataclasses.replace(tiny.vision, out_hidden_size=32))


@pytest.fixture(scope="session")
def mesh():
    return make_mesh()


@pytest.fixture(scope="session")
def model(mesh):
    with jax.set_mesh(mesh):
        model = Qwen35(small_config(), dtype=jnp.float32, vision=False, rngs=nnx.Rngs(0))
        # Larger weights than the reference's initial ones, so that no gradient is lost in rounding.
        graphdef, state = nnx.split(model)
        rng = np.random.default_rng(0)
        state = jax.tree.map(lambda x: x + 0.03 * rng.normal(size=x.shape).astype(np.float32), state)
        return nnx.merge(graphdef, state)


@pytest.fixture(scope="session")
def host_batch():
    """Rows of one to four documents, with padding, prompts that do not train, and one row without any target."""
    rng = np.random.default_rng(1)
    segment_ids = np.zeros((ROWS, TOKENS), np.int32)
    for row in range(ROWS):
        cuts = np.sort(rng.choice(np.arange(1, TOKENS - 3), size=row % 4, replace=False))
        segment_ids[row] = 1 + np.searchsorted(cuts, np.arange(TOKENS), side="right")
        segment_ids[row, TOKENS - row % 3 :] = 0
    trained = (rng.random((ROWS, TOKENS)) < np.linspace(0.2, 0.9, ROWS)[:, None]) & (segment_ids > 0)
    trained[2] = False
    input_ids = rng.integers(0, 512, (ROWS, TOKENS)).astype(np.int32) * (segment_ids > 0)
    return {"input_ids": input_ids.astype(np.int32), "segment_ids": segment_ids, "trained": trained}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with a checkpoint, ``base``, and conversations, ``train.jsonl``, that fit each other."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = random.Random(0)
    sums = [(a, b) for a in range(12) for b in range(12)]
    rng.shuffle(sums)
    texts = [f"What is {a} plus {b}? It is {a + b}." for a, b in sums]
    build_tiny_tokenizer(texts, folder / "tokenizer", vocab_size=400)
    create_checkpoint(small_config(), folder / "base", seed=0, dtype="float32", tokenizer_from=folder / "tokenizer")
    rows = [
        {"messages": [{"role": "user", "content": text.split("?")[0]}, {"role": "assistant", "content": text[-10:]}]}
        for text in texts
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Where commands keep compiled programs; the workers of pytest-xdist share it."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def command(inputs, compiled):
    """The training command in processes of its own."""
    return Command(inputs, compiled)


@pytest.fixture
def slow_data(tmp_path):
    """A config file whose run reads a batch a second."""
    path = tmp_path / "slow.py"
    path.write_text(SLOW_DATA)
    return str(path)


@pytest.fixture(scope="session")
def whole_run(command, tmp_path_factory):
    """The directory and the output of a LoRA run of 9 steps that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, command.run(workdir, *LORA)
