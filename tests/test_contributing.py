"""CONTRIBUTING.md: its targets and paths exist."""

import re

import pytest

from tests.conftest import REPO

TEXT = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATH = re.compile(r"`((?:qwen35_jax|train|eval|configs|examples|tests|docs|benchmarks)/[\w./]+|[\w.]+\.(?:md|toml))`")


def test_every_make_target_exists():
    targets = set(re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"make ([\w-]+)", "\n".join(re.findall(r"`[^`]+`|```.+?```", TEXT, re.DOTALL))))
    assert named and named <= targets


@pytest.mark.parametrize("path", sorted({path for path in PATH.findall(TEXT) if "NAME" not in path}))
def test_every_path_exists(path):
    # The README of an op is named without its folder.
    assert (REPO / path).exists() or (REPO / "qwen35_jax" / "ops" / "gated_delta" / path).exists()
