"""The commands that pages and notebooks show: finds them in a text, and has them parsed by their own parsers."""

import functools
import re
import shlex
import subprocess
import sys
from typing import Any

from eval.config import EvalConfig
from eval.plan import read_command
from eval.score import ScoreConfig
from qwen35_jax import cli
from qwen35_jax.command import config_from_command_line, parse
from tests.conftest import REPO
from train.config import TrainConfig

_OURS = r"(?:python -m (?:train|eval|benchmarks|examples)\.|qwen35 |make )"
_RUN_FILES = dict.fromkeys(("train.sft", "train.distill", "train.teach", "train.preview"), TrainConfig) | {
    "eval.run": EvalConfig
}


def fenced_blocks(text: str, language: str) -> list[str]:
    """Returns the fenced blocks of a language, those in lists included; ``""`` is a block without a language."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(f"^{indent}", "", body, flags=re.MULTILINE) for indent, name, body in found if name == language]


def find_commands(text: str) -> list[list[str]]:
    """Returns the arguments of this project's commands, those inside loops and quoted remote commands included."""
    found = []
    for line in text.replace("\\\n", " ").replace("$'", "'").splitlines():
        if re.match(_OURS, line):
            found.append(shlex.split(line, comments=True))
        else:
            found += [shlex.split(part) for part in re.findall(r'python -m train\.\w+ \S+\.py[^;&"]*', line)]
    return found


def parse_command(command: list[str]) -> Any:
    """Parses a command as it does itself, without running it; returns the settings, where it has such.

    Raises:
      ValueError: the command does not accept its arguments.
    """
    if command[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        if command[1] not in targets:
            raise ValueError(f"make {command[1]}: there is no such target; the targets are {', '.join(targets)}.")
        return None
    if command[0] == "qwen35":
        return cli.make_parser(command[1]).parse_args(command[1:])
    return _parse_module(command[2], command[3:])


def _parse_module(module: str, arguments: list[str]) -> Any:
    program = f"python -m {module}"
    if module in _RUN_FILES:
        run_file, *overrides = arguments
        return config_from_command_line([str(REPO / run_file), *overrides], _RUN_FILES[module], program=program)
    if module == "eval.plan":
        return read_command([str(REPO / arguments[0]), *arguments[1:]])
    if module == "eval.score":
        return parse(arguments, ScoreConfig, program=program)
    # Argparse modules have their own help; an option that it does not show does not exist.
    known = set(re.findall(r"--[\w.-]+", _help(module)))
    unknown = [part for part in arguments if part.startswith("--") and part not in known]
    if unknown:
        raise ValueError(f"{program} has no option {unknown[0]}; it has {', '.join(sorted(known))}.")
    return None


@functools.cache
def _help(module: str) -> str:
    command = [sys.executable, "-m", module, "--help"]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
