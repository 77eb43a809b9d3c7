"""README and docs: links lead somewhere, commands are accepted by their own parsers, and the Python examples run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from eval.config import EvalConfig
from eval.score import ScoreConfig
from examples.quickstart import run as quickstart
from qwen35_jax import cli
from qwen35_jax.command import config_from_command_line, parse
from tests.conftest import REPO
from train.config import TrainConfig

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "examples" / "README.md", *sorted(REPO.glob("docs/*.md"))]
PAGES += sorted((REPO / "qwen35_jax").rglob("README.md")) + sorted((REPO / "train").rglob("README.md"))
NAMES = [page.relative_to(REPO).as_posix() for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    """Returns the fenced blocks of a language; an empty one is a block without a language."""
    fences = page.read_text(encoding="utf-8").split("\n```")[1:]
    opened = [fence.partition("\n") for fence in fences[::2]]
    return [body for name, _, body in opened if name == language]


_OURS = r"(?:python -m (?:train|eval|benchmarks|examples)\.|qwen35 |make )"


def commands(page: Path) -> list[list[str]]:
    """Returns the arguments of this project's commands, those inside loops and quoted remote commands included."""
    found = []
    for block in (*blocks(page, ""), *blocks(page, "bash")):
        for line in block.replace("\\\n", " ").replace("$'", "'").splitlines():
            if re.match(_OURS, line):
                found.append(shlex.split(line, comments=True))
            else:
                found += [shlex.split(part) for part in re.findall(r'python -m train\.\w+ \S+\.py[^;&"]*', line)]
    return found


ALL = [(page.name, command) for page in PAGES for command in commands(page)]


def test_the_readme_is_a_landing_page():
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_images_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    local = [
        target.split("#")[0] for target in targets if "://" not in target and not target.startswith(("#", "mailto"))
    ]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing


def test_the_pages_hold_commands():
    assert len(ALL) > 25
    assert {command[0] for _, command in ALL} == {"make", "python", "qwen35"}


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{name}: {' '.join(command)[:60]}" for name, command in ALL])
def test_commands_are_accepted_by_their_parsers(page, command):
    if command[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), flags=re.MULTILINE)
        assert command[1] in targets
    elif command[0] == "qwen35":
        cli._parser().parse_args(command[1:])
    else:
        check_module(command[2], [re.sub(r"\$i", "0", part) for part in command[3:]])


def check_module(module: str, arguments: list[str]) -> None:
    """Parses the command line of a module as the module itself does, without running it."""
    if module == "train.sft":
        config_from_command_line(
            arguments, TrainConfig, program="python -m train.sft"
        ) if "--help" not in arguments else 0
    elif module == "eval.run":
        config_from_command_line(arguments, EvalConfig, program="python -m eval.run")
    elif module == "eval.score":
        parse(arguments, ScoreConfig, program="python -m eval.score")
    else:
        # Argparse modules have their own help; an option that it does not show does not exist.
        options = [part for part in arguments if part.startswith("--") and part != "--help"]
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=REPO, capture_output=True, text=True, check=True
        )
        assert all(option in done.stdout for option in options), module


@pytest.fixture(scope="module")
def after_the_quickstart(tmp_path_factory):
    """A folder that holds what the examples name, with a random checkpoint in place of the trained one."""
    folder = tmp_path_factory.mktemp("docs")
    work = folder / "runs" / "quickstart"
    quickstart.make_inputs(quickstart.Settings(workdir=work, num_train=1, num_test=1))
    (work / "random").rename(work / "merged")
    return folder


@pytest.mark.parametrize("name", ["README.md", "docs/library.md"])
def test_python_examples_run(name, after_the_quickstart, monkeypatch, capsys):
    monkeypatch.chdir(after_the_quickstart)
    examples = blocks(REPO / name, "python")
    assert examples
    scope: dict = {}
    for number, example in enumerate(examples, start=1):
        exec(compile(example, f"{name}, example {number}", "exec"), scope)
