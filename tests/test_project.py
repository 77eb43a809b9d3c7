"""The house rules that a machine can check: import directions, what the product may import, what the wheel holds."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPO

PRODUCT = ("qwen35_jax", "train", "eval", "configs", "examples")
SOURCES = sorted(path for folder in PRODUCT for path in (REPO / folder).rglob("*.py"))
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
# Packages whose requirement is not called as their module.
REQUIREMENTS = {
    "google_crc32c": "google-crc32c",
    "huggingface_hub": "huggingface-hub",
    "orbax": "orbax-checkpoint",
    "PIL": "pillow",
    "yaml": "pyyaml",
}
# Imported only if a run asks for it: where metrics may go besides the run directory, and videos (extra `video`).
OPTIONAL = {"train": {"av", "tensorboardX", "trackio", "wandb"}, "eval": {"av"}}
# The verifiers of lm_eval import it, but lm_eval does not require it.
NEEDED_BY_OTHERS = {"eval": {"immutabledict"}}


def imported_modules(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def required_by(folder: str) -> set[str]:
    """Returns the third-party packages that the files of a folder import, also by ``import_module`` and the like."""
    modules = set()
    for path in (REPO / folder).rglob("*.py"):
        modules |= imported_modules(path) | modules_imported_by_name(path)
    roots = {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - set(PRODUCT)
    return {REQUIREMENTS.get(root, root) for root in roots}


def modules_imported_by_name(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "_import"):
                names.add(node.args[0].value)
    return names


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", requirement)[0] for requirement in requirements}


def test_the_library_requires_what_it_imports_and_nothing_else():
    """What only gs:// addresses need is in an extra of its own, and so is what the server and videos need."""
    project = PROJECT["project"]
    extras = [
        requirement for extra in ("gcs", "serve", "video") for requirement in project["optional-dependencies"][extra]
    ]
    assert declared(project["dependencies"] + extras) == required_by("qwen35_jax")


@pytest.mark.parametrize("folder", ["train", "eval"])
def test_an_extra_requires_what_its_folder_imports_besides_the_library(folder):
    base = declared(PROJECT["project"]["dependencies"])
    extra = declared(PROJECT["project"]["optional-dependencies"][folder])
    needed = required_by(folder) - OPTIONAL.get(folder, set())
    assert extra == (needed | NEEDED_BY_OTHERS.get(folder, set())) - base


def test_examples_and_configs_need_no_more_than_the_extras_that_make_quickstart_installs():
    extras = PROJECT["project"]["optional-dependencies"]
    installed = declared(PROJECT["project"]["dependencies"] + extras["train"] + extras["eval"])
    assert required_by("examples") | required_by("configs") <= installed


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
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == ["qwen35_jax*"]
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["qwen35_jax"]
    assert (REPO / "qwen35_jax" / "py.typed").is_file()
    missing = [p.parent for p in SOURCES if not (p.parent / "__init__.py").is_file()]
    assert not missing, "every folder of the product is a package"


def test_public_names_are_lazy_and_complete():
    code = (
        "import sys, qwen35_jax as q; assert 'jax' not in sys.modules; "
        "assert all(getattr(q, name) for name in q.__all__) and set(q.__all__) <= set(dir(q))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)


def test_only_sharding_names_mesh_axes():
    for folder in ("qwen35_jax", "train", "eval"):
        for path in (REPO / folder).rglob("*.py"):
            if path == REPO / "qwen35_jax" / "sharding.py":
                continue
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            literals = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            # "data" is also the name of an item of a checkpoint, and of the identity of a run.
            assert not literals & {"fsdp", "context", "tensor"}, path


def test_files_and_functions_are_short():
    for path in [*SOURCES, *(REPO / "tests").rglob("*.py"), *(REPO / "benchmarks").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
