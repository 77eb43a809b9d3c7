"""CONTRIBUTING.md: its targets and paths exist, and its benchmark is one."""

import json
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


def test_the_benchmark_can_be_scored(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    namespace: dict = {}
    exec(example, namespace)
    rows = [{"question": "Is the sky blue?", "answer": True}, {"question": "Is 2 odd?", "answer": False}]
    path = tmp_path / "yes_no" / "test.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _, documents = namespace["TASK"].load("official", str(tmp_path))
    assert [document.score("Yes, it is.").correct for document in documents] == [True, False]
    assert [document.score("Perhaps").answered for document in documents] == [False, False]
