"""Run files, overrides and error lines, as every command handles them."""

import dataclasses
import errno
import subprocess
import sys
import tomllib
from typing import Literal

import pytest

from qwen35_jax.cli import main
from qwen35_jax.command import config_from_command_line, load_config, one_line_errors, parse
from tests.conftest import REPO


@dataclasses.dataclass(frozen=True)
class Source:
    path: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    model: Source = Source()
    tasks: tuple[str, ...] = ("qa",)
    mode: Literal["thinking", "non_thinking"] = "non_thinking"
    limit: int | None = None
    out: str = "runs/x"

    def __post_init__(self):
        if self.limit == 0:
            raise ValueError("limit=0 leaves nothing to do; give 1 or more.")


@dataclasses.dataclass(frozen=True)
class Required:
    task: str


@pytest.fixture
def run_file(tmp_path):
    """Writes a run file with the given text and returns its path."""

    def write(text, name="run.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


GOOD = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Own:
    steps: int = 3

def config():
    return Own(steps=7)
"""


def test_parse_applies_typed_overrides():
    got = parse(
        ["--model.path", "a/b", "--tasks", "x", "y", "--mode", "thinking", "--limit", "4"], Settings(out="kept")
    )
    assert got == Settings(Source("a/b"), ("x", "y"), "thinking", 4, "kept")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--nope", "3"], ["--nope"]),
        (["--model.pat", "3"], ["--model.pat"]),
        (["--mode", "loud"], ["loud", "thinking"]),
        (["--limit", "many"], ["--limit", "many"]),
        (["--limit"], ["--limit"]),
        (["stray"], ["stray"]),
        (["--limit", "0"], ["limit=0"]),
    ],
)
def test_wrong_override_is_one_line(argv, parts, capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        parse(argv, Settings())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error


def test_a_field_without_default_is_required():
    assert parse(["--task", "x"], Required) == Required("x")
    with pytest.raises(ValueError, match="--task"):
        parse([], Required)


def test_fields_of_an_optional_part_are_options():
    @dataclasses.dataclass(frozen=True)
    class Whole:
        part: Source | None = None

    assert parse(["--part.path", "x"], Whole(Source())) == Whole(Source("x"))
    with pytest.raises(ValueError, match=r"--part\.path"):
        parse(["--part.path", "x"], Whole())


def test_load_config_returns_what_the_file_builds(run_file):
    config = load_config(run_file(GOOD))
    assert config.steps == 7
    assert parse(["--steps", "9"], config).steps == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "defines no function config"),
        ("def config():\n    retrun 3\n", "run.py:2: not valid Python"),
        ("def config():\n    return 3\n", "must return a frozen dataclass"),
        (GOOD.replace("frozen=True", ""), "must return a frozen dataclass"),
    ],
)
def test_load_config_rejects(run_file, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(run_file(text))


@pytest.mark.parametrize("name", ["absent.py", "folder", "run.yaml"])
def test_load_config_needs_a_python_file(tmp_path, name):
    with pytest.raises(ValueError, match="is not a Python run file"):
        load_config(tmp_path / name)


def test_the_run_file_comes_first():
    for argv in ([], ["--limit", "3"]):
        with pytest.raises(ValueError, match="the run file comes first"):
            config_from_command_line(argv, Settings, program="python -m x")


def test_a_run_file_of_another_command_is_refused(run_file):
    with pytest.raises(ValueError, match="configures Own, but python -m x needs Settings"):
        config_from_command_line([run_file(GOOD)], Settings, program="python -m x")


@pytest.mark.parametrize("with_file", [False, True])
def test_help_lists_the_fields(run_file, capsys, with_file):
    with pytest.raises(SystemExit) as stop:
        if with_file:
            parse(["--help"], load_config(run_file(GOOD.replace("steps", "limit"))), program="x")
        else:
            config_from_command_line(["--help"], Settings, program="x")
    assert stop.value.code == 0
    assert "--limit" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    commands = (
        main,
        lambda argv: parse(argv, Settings),
        lambda argv: config_from_command_line(argv, Settings, program="x"),
    )
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            command(["--version"])
        assert stop.value.code == 0
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"qwen35-jax {version}\n" * 3


def test_messages_lose_their_line_breaks_and_defects_keep_their_traceback(capsys, monkeypatch):
    with pytest.raises(SystemExit), one_line_errors():
        raise FileNotFoundError("no\n  such")
    assert capsys.readouterr().err == "error: no such\n"
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("defect")
    monkeypatch.setenv("QWEN35_TRACEBACK", "1")
    with pytest.raises(ValueError, match="seen"), one_line_errors():
        raise ValueError("seen")


def test_interruption_ends_with_code_130(capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device", "a"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError("RESOURCE_EXHAUSTED: Error writing [OS error 28: ENOSPC No space left on device]"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7 bytes"),
        MemoryError(),
    ],
)
def test_a_fault_of_the_machine_has_an_exit_code_of_its_own(fault, capsys):
    with pytest.raises(SystemExit) as caught, one_line_errors():
        try:
            raise fault
        except OSError as err:
            raise ValueError("the file cannot be written") from err
    assert caught.value.code == 74
    assert capsys.readouterr().err.count("\n") == 1


def test_another_runtime_error_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a defect"), one_line_errors():
        raise RuntimeError("a defect")


def test_who_closes_the_pipe_hears_no_complaint():
    command = [sys.executable, "-m", "train.sft", "--help"]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
