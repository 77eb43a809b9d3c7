"""What every test shares: a CPU with eight devices, no spinning thread pools, and the optional reference data."""

import dataclasses
import gc
import os
import shutil
from pathlib import Path

import pytest

from tests.xla import common_flags, flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = flags(devices=8)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The import hook that checks shapes finds its checker (pyproject.toml) only in a package that has loaded it.
import jax

import tests.typechecker  # noqa: F401
from tests.gcs.fixtures import emulator, place  # noqa: F401

# XLA reads its flags now. The TPU compiler reads them when a test first loads it.
jax.devices()
os.environ["XLA_FLAGS"] = common_flags(devices=8)

# Commands keep compiled programs in the user's cache; those that a test calls do so only where the environment says.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_enable_compilation_cache", False)

REPO = Path(__file__).resolve().parents[1]
PUBLISHED = REPO / "tests" / "published"
"""Published configurations, templates, tensor names and a part of the tokenizer."""


def pytest_collection_finish():
    """Spares the garbage collector what imports have made, and lets it look less often: it took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def shared_dir() -> Path | None:
    """The folder with the real tokenizer, configs and data sets beside the checkout, where it exists."""
    path = REPO.parent / "shared"
    return path if (path / "qwen35").is_dir() else None


@pytest.fixture(scope="session")
def official_tokenizer_dir(tmp_path_factory):
    """A folder with the 2B's tokenizer, cut down to what the stored cases and the tests' conversations need."""
    folder = tmp_path_factory.mktemp("official_tokenizer")
    shutil.copy(PUBLISHED / "tokenizer_part.json", folder / "tokenizer.json")
    shutil.copy(PUBLISHED / "tokenizer_config_2b_and_below.json", folder / "tokenizer_config.json")
    shutil.copy(PUBLISHED / "chat_template_2b_and_below.jinja", folder / "chat_template.jinja")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> str:
    """A folder with a random float32 model and a tokenizer of almost a token a byte; its period is short to compile."""
    from examples.quickstart.tokenizer import build_tiny_tokenizer
    from qwen35_jax.config import FULL, LINEAR
    from qwen35_jax.hf.create import create_checkpoint
    from qwen35_jax.presets import PRESETS
    from qwen35_jax.processing.tokenizer import Tokenizer

    tokenizer = build_tiny_tokenizer(["user assistant\n"] * 4, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)
    text = dataclasses.replace(PRESETS["tiny"].text, num_hidden_layers=4, layer_types=(LINEAR, FULL) * 2)
    pads = {f"{kind}_token_id": f"<|{kind}_pad|>" for kind in ("image", "video")}
    ids = {name: Tokenizer.from_pretrained(tokenizer).token_id(pad) for name, pad in pads.items()}
    config = dataclasses.replace(PRESETS["tiny"], text=text, **ids)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return str(create_checkpoint(config, folder, seed=0, dtype="float32", tokenizer_from=tokenizer))
