"""The whole 2B with random weights, on this machine: memory while loading, float32 logits, and the identity."""

import filecmp
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.presets import PRESETS
from tests.conftest import PUBLISHED, REPO

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(0).integers(0, 248_077, (1, 64))

OURS = """
import resource, sys
import numpy as np
import qwen35_jax
model = qwen35_jax.load(sys.argv[1], dtype="float32")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
np.save(sys.argv[3], model.logits(np.load(sys.argv[2])))
"""
THEIRS = """
import sys
import numpy as np, torch, transformers
model = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.float32)
with torch.no_grad():
    np.save(sys.argv[3], model(input_ids=torch.as_tensor(np.load(sys.argv[2]))).logits.numpy())
"""
IDENTITY = """
import sys
import qwen35_jax
qwen35_jax.save(qwen35_jax.load(sys.argv[1], dtype="bfloat16"), sys.argv[2], source=sys.argv[1])
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return create_checkpoint(PRESETS["2b"], tmp_path_factory.mktemp("full") / "2b", seed=0)


def run(code: str, *arguments) -> str:
    """Runs one side in a process of its own: the two do not fit in memory together."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=REPO, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_the_file_has_the_official_size(checkpoint):
    assert (checkpoint / "model.safetensors").stat().st_size == 4_548_221_488
    assert len(json.loads((PUBLISHED / "weights_2B.json").read_text())) == 632


def test_logits_match_transformers(checkpoint, tmp_path):
    np.save(tmp_path / "ids.npy", TOKENS)
    peak = int(run(OURS, checkpoint, tmp_path / "ids.npy", tmp_path / "ours.npy"))
    # 1.94 billion float32 parameters and the largest tensor, the embedding, once more; 1 GB for the interpreter.
    assert peak < 4 * 1_942_653_248 + 4 * 508_559_360 + 1e9, f"loading took {peak / 1e9:.2f} GB"
    run(THEIRS, checkpoint, tmp_path / "ids.npy", tmp_path / "theirs.npy")
    ours, theirs = np.load(tmp_path / "ours.npy"), np.load(tmp_path / "theirs.npy")
    # Float32 rounding through 24 layers.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    print(f"peak while loading {peak / 1e9:.2f} GB, largest difference {np.abs(ours - theirs).max():.2e}")


def test_load_and_save_is_the_identity(checkpoint, tmp_path):
    run(IDENTITY, checkpoint, tmp_path / "out")
    same, different, missing = filecmp.cmpfiles(
        checkpoint, tmp_path / "out", [path.name for path in checkpoint.iterdir()], shallow=False
    )
    assert not different and not missing and "model.safetensors" in same
