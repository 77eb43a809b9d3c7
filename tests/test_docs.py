"""README and docs: links lead somewhere, commands are accepted by their own parsers, and the Python examples run."""

import re
import tomllib

import pytest

from examples.quickstart import run as quickstart
from tests.commands import fenced_blocks, find_commands, parse_command
from tests.conftest import REPO
from train.config import TrainConfig

PAGES = [
    *map(REPO.joinpath, ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    REPO / "examples" / "README.md",
    *sorted(REPO.glob("docs/*.md")),
]
PAGES += sorted((REPO / "qwen35_jax").rglob("README.md")) + sorted((REPO / "train").rglob("README.md"))
TEXTS = {page.relative_to(REPO).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
ALL = [
    (name, command)
    for name, text in TEXTS.items()
    for block in (*fenced_blocks(text, ""), *fenced_blocks(text, "bash"))
    for command in find_commands(block)
]
# What stands for something that only the reader knows.
PLACEHOLDERS = {"configs/NAME.py": "configs/lora_2b_v5e8.py", "$i": "0"}
# The page shows these run files, and the reader saves them.
PLACEHOLDERS |= {
    "tiny_onpolicy.py": "configs/distill_onpolicy_9b_to_2b.py",
    "tiny_seeing.py": "configs/distill_live_9b_to_2b.py",
}
# A step of a drawing in the design: the file, then the function, class or method that takes it.
STEP = re.compile(r"^[ |]+([\w/]+\.py) +([A-Z]\w+(?:\.\w+)?|[a-z]\w+)[:, \n]", flags=re.MULTILINE)


def test_the_readme_is_a_landing_page():
    assert len(TEXTS["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("name", TEXTS)
def test_links_and_images_exist(name):
    targets = [*re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]), *re.findall(r'src="([^"]+)"', TEXTS[name])]
    local = [
        target.split("#")[0] for target in targets if "://" not in target and not target.startswith(("#", "mailto"))
    ]
    missing = [target for target in local if not (REPO / name).parent.joinpath(target).exists()]
    assert not missing


def test_install_lines_name_extras_that_exist():
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sources = [path for folder in ("qwen35_jax", "train", "eval", "examples") for path in (REPO / folder).rglob("*.py")]
    texts = [*TEXTS.values(), *(path.read_text(encoding="utf-8") for path in sources)]
    lists = [found for text in texts for found in re.findall(rf"(?:\.|{project['name']})\[([a-z, ]+)\]", text)]
    named = {extra.strip() for found in lists for extra in found.split(",")}
    assert {"train", "eval", "plan", "tpu", "gpu", "all"} <= named <= project["optional-dependencies"].keys()


@pytest.mark.parametrize(("file", "name"), STEP.findall(TEXTS["docs/design.md"].split("## From a file")[1]))
def test_the_drawings_name_what_exists(file, name):
    (path,) = [folder / file for folder in (REPO, REPO / "qwen35_jax") if (folder / file).is_file()]
    text = path.read_text(encoding="utf-8")
    assert all(re.search(rf"\b(def|class) {part}\b", text) for part in name.split("."))


def test_the_tests_that_prove_something_exist():
    named = set(re.findall(r"`(tests/[\w/]+(?:\.py)?)`", TEXTS["docs/whats_proven.md"]))
    assert len(named) > 10
    assert not [name for name in named if not (REPO / name).exists()]


def test_the_pages_hold_commands():
    assert len(ALL) > 25
    assert {command[0] for _, command in ALL} == {"make", "python", "qwen35"}


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{name}: {' '.join(command)[:60]}" for name, command in ALL])
def test_commands_are_accepted_by_their_parsers(page, command):
    parse_command([PLACEHOLDERS.get(part, part) for part in command])


def test_run_files_of_a_page_configure_runs():
    run_files = fenced_blocks(TEXTS["docs/distillation.md"], "python")
    assert len(run_files) == 2
    for text in run_files:
        scope: dict = {}
        exec(compile(text, "docs/distillation.md", "exec"), scope)
        assert isinstance(scope["config"](), TrainConfig)


@pytest.fixture(scope="module")
def after_the_quickstart(tmp_path_factory):
    """A folder that holds what the examples name, with a random checkpoint in place of the trained one."""
    folder = tmp_path_factory.mktemp("docs")
    work = folder / "runs" / "quickstart"
    quickstart.make_inputs(quickstart.Settings(workdir=work, num_train=1, num_test=1))
    (work / "random").rename(work / "merged")
    return folder


@pytest.mark.parametrize("name", ["README.md", pytest.param("docs/library.md", marks=pytest.mark.slow)])
def test_python_examples_run(name, after_the_quickstart, monkeypatch, capsys):
    monkeypatch.chdir(after_the_quickstart)
    examples = fenced_blocks(TEXTS[name], "python")
    assert examples
    scope: dict = {}
    for number, example in enumerate(examples, start=1):
        exec(compile(example, f"{name}, example {number}", "exec"), scope)
