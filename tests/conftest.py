"""What every test shares: a CPU with eight devices, no spinning thread pools, and the optional reference data."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is compilation; unoptimised machine code computes the same sums and halves it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The import hook that checks shapes finds its checker (pyproject.toml) only in a package that has loaded it.
import jax

import tests.typechecker  # noqa: F401

# Commands keep compiled programs in the user's cache; those that a test calls do so only where the environment says.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_enable_compilation_cache", False)

REPO = Path(__file__).resolve().parents[1]


def shared_dir() -> Path | None:
    """The folder with the real tokenizer, configs and data sets beside the checkout, where it exists."""
    path = REPO.parent / "shared"
    return path if (path / "qwen35").is_dir() else None
