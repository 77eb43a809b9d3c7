"""The notebook: it is valid, its commands are those of this checkout, and all of it runs on a tiny checkpoint."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from examples.quickstart import run as quickstart
from qwen35_jax import cli
from qwen35_jax.command import one_line_errors
from tests.commands import parse_command
from tests.conftest import REPO

NOTEBOOK = REPO / "examples" / "finetune.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = {cell["id"]: "".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"}


def to_python(source: str) -> str:
    """Writes ``!command`` and ``%cd folder`` as calls; the braces of IPython are those of an f-string."""
    joined = source.replace("\\\n", " ")
    joined = re.sub(r"^( *)!(.+)$", lambda found: f"{found[1]}shell(f{found[2]!r})", joined, flags=re.MULTILINE)
    return re.sub(r"^( *)%cd (.+)$", lambda found: f"{found[1]}cd(f{found[2]!r})", joined, flags=re.MULTILINE)


def commands() -> list[list[str]]:
    """Returns the arguments of every command in the cells after the installation, with the parameters filled in."""
    parameters = {}
    exec(CODE["parameters"], parameters)
    found = []
    for name, source in CODE.items():
        if name != "install":
            lines = re.findall(r"^ *!(.+)$", source.replace("\\\n", " "), flags=re.MULTILINE)
            found += [shlex.split(line.format(**parameters)) for line in lines]
    return found


def test_it_is_valid_and_stores_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        assert all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], cell["id"]
            assert cell["execution_count"] is None, cell["id"]
    tagged = [cell["id"] for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    assert tagged == ["parameters"]


@pytest.mark.parametrize("name", CODE)
def test_every_code_cell_compiles(name):
    ast.parse(to_python(CODE[name]))


def test_the_trainer_accepts_its_options():
    (command,) = [command for command in commands() if command[:3] == ["python", "-m", "train.sft"]]
    config = parse_command(command)
    for value in command[5::2]:
        assert value in repr(config)


@pytest.mark.parametrize("arguments", [command[1:] for command in commands() if command[0] == "qwen35"])
def test_the_command_accepts_its_options(arguments, tmp_path, capsys):
    where = arguments.index("--model") + 1
    arguments[where] = str(tmp_path / "absent")
    # A wrong option is reported before the folder is looked for.
    with pytest.raises(SystemExit), one_line_errors():
        cli.main(arguments)
    error = capsys.readouterr().err
    assert arguments[where] in error
    assert "--help" not in error


def test_every_command_is_one_of_those():
    assert {" ".join(command[: 3 if command[0] == "python" else 2]) for command in commands()} == {
        "python -m train.sft",
        "qwen35 generate",
        "qwen35 merge",
    }


@pytest.fixture
def tiny_parameters(tmp_path):
    """The parameters cell, for a random checkpoint that learns for a few steps."""
    work = tmp_path / "tiny"
    quickstart.make_inputs(quickstart.Settings(workdir=work, num_train=1, num_test=1))
    values = {
        "MODEL": str(work / "random"),
        "RECIPE": "configs/lora_2b_v5e1.py",
        "DATA": str(work / "conversations.jsonl"),
        "WORKDIR": str(work / "lora"),
        "MERGED": str(work / "merged"),
        "STEPS": 4,
        "WARMUP_STEPS": 1,
        "LEARNING_RATE": 1e-2,
        "SEQUENCE_LENGTH": 256,
        "DTYPE": "float32",
        "QUESTION": "When can I visit the lighthouse of Cape Morrow?",
        "MAX_NEW_TOKENS": 8,
    }
    return "\n".join(f"{name} = {value!r}" for name, value in values.items())


def make_shell(printed: list[str]):
    """Returns what ``!command`` does: it runs the command with this Python and this checkout first on its paths."""
    paths = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(REPO),
    }

    def shell(command: str) -> None:
        done = subprocess.run(["bash", "-c", command], env=os.environ | paths, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        printed.append(done.stdout)

    return shell


@pytest.mark.slow
def test_the_whole_of_it_on_a_tiny_checkpoint(tiny_parameters, monkeypatch, capsys):
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    printed: list[str] = []
    namespace = {"shell": make_shell(printed), "cd": os.chdir}
    for name, source in CODE.items():
        if name == "parameters":
            given = {}
            exec(source, given)
            exec(tiny_parameters, namespace)
            # Only values change, so the notebook has no other parameter.
            assert given.keys() <= namespace.keys()
        else:
            exec(compile(to_python(source), f"<cell {name}>", "exec"), namespace)

    entries = namespace["entries"]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert entries[-1]["loss"] < entries[0]["loss"]
    assert Path(namespace["WORKDIR"], "plots", "losses.png").is_file()
    assert namespace["logits"].shape == (1, len(namespace["prompt"]), namespace["model"].config.text.vocab_size)
    assert "the answer's most likely first tokens" in capsys.readouterr().out

    before, after = printed[0], printed[2]
    assert after != before
    # The merged folder is a checkpoint that needs no adapter: it gives the same greedy answer.
    command = to_python(CODE["after"].replace("--model {MODEL} --adapter {WORKDIR}/export", "--model {MERGED}"))
    exec(command, namespace)
    assert printed[-1] == after
