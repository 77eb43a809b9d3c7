"""The house rules that a machine can check: import directions, what the product may import, what the wheel holds."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPO

PRODUCT = ("qwen35_jax", "train", "eval", "configs", "examples")
SOURCES = sorted(path for folder in PRODUCT for path in (REPO / folder).rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def test_imports_go_downwards():
    pytest.importorskip("importlinter", reason="import-linter is a development tool")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_product_does_not_import_the_references():
    for path in SOURCES:
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert not roots & {"torch", "transformers", "peft", "tests", "benchmarks"}, path


def test_nobody_hides_the_builtin_eval():
    for path in SOURCES + sorted((REPO / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for alias in node.names if isinstance(node, ast.Import) else ():
                assert alias.asname or alias.name.split(".")[0] != "eval", path


def test_only_the_library_is_packaged():
    packaging = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert packaging["packages"]["find"]["include"] == ["qwen35_jax*"]
    missing = [p.parent for p in SOURCES if not (p.parent / "__init__.py").is_file()]
    assert not missing, "every folder of the product is a package"


def test_public_names_are_lazy_and_complete():
    code = (
        "import sys, qwen35_jax as q; assert 'jax' not in sys.modules; "
        "assert all(getattr(q, name) for name in q.__all__) and set(q.__all__) <= set(dir(q))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
