"""What every test shares: a CPU with eight devices, no spinning thread pools, and the optional reference data."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPO = Path(__file__).resolve().parents[1]


def shared_dir() -> Path | None:
    """The folder with the real tokenizer, configs and data sets beside the checkout, where it exists."""
    path = REPO.parent / "shared"
    return path if (path / "qwen35").is_dir() else None
