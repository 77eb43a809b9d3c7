"""Run files, overrides and one-line errors, for every command of this project."""

import contextlib
import dataclasses
import errno
import importlib.metadata
import importlib.util
import io
import itertools
import operator
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from qwen35_jax.interrupts import every_interrupt_counts
from qwen35_jax.liveness import MACHINE_FAULT, end_all
from qwen35_jax.wording import did_you_mean, did_you_mean_choice, did_you_mean_option, options_of

TRACEBACK_VARIABLE = "QWEN35_TRACEBACK"

WRONG_INPUT, INTERRUPTED = 2, 130
"""Exit codes, beside ``MACHINE_FAULT``. 130 is what shells say of Ctrl-C."""

_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM}
# How orbax, tensorstore and XLA say the same; they raise errors of their own.
_FAULT_WORDS = re.compile("no space left on device|disk quota exceeded|resource_exhausted|out of memory", re.IGNORECASE)

Config = TypeVar("Config")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns the errors a user can act on into one line on stderr and a non-zero exit.

    This project raises ``ValueError`` and ``OSError`` for wrong input; they end in exit code 2. A full disk, a lack of
    memory, a failing device and a failing network end in another code, so that what starts a run again can tell them
    apart. Any other error is a defect and keeps its traceback. Of several processes all end with the error of one. Set
    ``QWEN35_TRACEBACK=1`` to see the traceback of every error. The function can be used as a decorator too.

    Raises:
      SystemExit: code 2 for wrong input, 74 where the machine failed (disk, memory, device, network), 130 after Ctrl-C.
    """
    try:
        with every_interrupt_counts():
            yield
    except KeyboardInterrupt:
        end_all("interrupted", INTERRUPTED)
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read the output has enough. Python would complain when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(MACHINE_FAULT) from None
    except (ValueError, OSError, RuntimeError, MemoryError) as err:
        fault = _is_fault_of_machine(err)
        if os.environ.get(TRACEBACK_VARIABLE) == "1" or not (fault or isinstance(err, ValueError | OSError)):
            raise
        message = str(err) or type(err).__name__
        if isinstance(err, OSError) and err.filename is not None and err.strerror:
            message = f"{err.filename}: {err.strerror}"
        if fault:
            message = f"{_one_line(message)[:500]} (disk, memory, device or network; the last whole checkpoint stays)"
        message, code = _one_line(message), MACHINE_FAULT if fault else WRONG_INPUT
        end_all(message, code)
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(code) from None


def _is_fault_of_machine(err: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is a full disk, a lack of memory, or a failing device or network."""
    while err is not None:
        if isinstance(err, MemoryError) or (isinstance(err, OSError) and err.errno in _FAULTS):
            return True
        if _FAULT_WORDS.search(str(err)):
            return True
        err = err.__cause__ or err.__context__
    return False


def load_config(path: str | Path) -> Any:
    """Runs a Python run file and returns the frozen dataclass that its ``config()`` builds.

    Raises:
      ValueError: no such file, not Python, no ``config()``, or not a frozen dataclass.
    """
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        nearest = did_you_mean(str(path), map(str, path.parent.glob("*.py")))
        raise ValueError(f"{path} is not a Python run file; give one such as configs/tiny_sft.py.{nearest}")
    spec = importlib.util.spec_from_file_location(f"run_file_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses defined in the file look their annotations up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as err:
        raise ValueError(f"{path}:{err.lineno}: not valid Python: {err.msg}") from err
    if not callable(getattr(module, "config", None)):
        raise ValueError(f"{path} defines no function config(); a run file returns its settings from `def config()`.")
    config = module.config()
    if isinstance(config, type) or not dataclasses.is_dataclass(config) or not config.__dataclass_params__.frozen:
        raise ValueError(f"config() of {path} returned {config!r}; it must return a frozen dataclass.")
    return config


def tell_version(argv: Sequence[str]) -> None:
    """Prints the package's version and exits with code 0 if a command line asks for it: ``--version`` comes first."""
    if argv[:1] == ["--version"]:
        print(f"qwen35-jax {importlib.metadata.version('qwen35-jax')}")
        raise SystemExit(0)


def parse(
    argv: Sequence[str], default: Config | type[Config], *, program: str | None = None, description: str | None = None
) -> Config:
    """Returns ``default`` with the typed command-line overrides of ``argv`` (``--model.path DIR``).

    ``--help`` prints every field with its default and exits with code 0, and so does ``--version`` with the package's.

    Args:
      default: the settings to start from; the dataclass itself where some have no default.

    Raises:
      ValueError: an unknown or missing option, or a value that does not fit the field's type.
    """
    tell_version(argv)
    if isinstance(default, type):
        return _run_tyro(default, argv, program=program, description=description)
    return _run_tyro(type(default), argv, program=program, description=description, default=default)


def config_from_command_line(
    argv: Sequence[str], config_type: type[Config], *, program: str, example: Config | None = None
) -> Config:
    """Returns the settings of ``PROGRAM CONFIG.py [overrides]``.

    Where an override decides which other options there are, the settings have a method ``before_overrides``, which gets
    all of them and returns the settings to override.

    Args:
      argv: the arguments after the program's name.
      config_type: what ``config()`` of the run file must return.
      program: how the user calls it (``python -m train.sft``).
      example: settings whose options ``--help`` lists without a run file; by default those of the type.

    Raises:
      ValueError: no run file first, a run file of another command, a wrong override.
    """
    tell_version(argv)
    usage = f"{program} CONFIG.py"
    if argv and argv[0] in ("-h", "--help"):
        _run_tyro(config_type, ["--help"], program=usage, description=None, default=example)
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"the run file comes first: {usage} [overrides]; {usage} --help lists the overrides.")
    default = load_config(argv[0])
    if not isinstance(default, config_type):
        raise ValueError(
            f"{argv[0]} configures {type(default).__name__}, but {program} needs {config_type.__name__}; "
            "give a run file written for this command."
        )
    adjust = getattr(default, "before_overrides", None)
    return parse(argv[1:], default if adjust is None else adjust(argv[1:]), program=usage)


def _run_tyro(
    config_type: type[Config],
    argv: Sequence[str],
    *,
    program: str | None,
    description: str | None,
    default: Config | None = None,
) -> Config:
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            # An optional part (`lora: LoraConfig | None`) is there or not as the run file says; its fields are options.
            config = (tyro.conf.AvoidSubcommands,)
            run = partial(tyro.cli, config_type, args=list(argv), prog=program, description=description, config=config)
            return run() if default is None else run(default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        _raise_first_message(messages.getvalue(), options_of(config_type).values())


def _raise_first_message(box: str, options: Collection[str]) -> NoReturn:
    """Raises the first paragraph in the box that tyro draws around an error, without the box's title.

    Args:
      options: what an option that tyro does not know may have meant.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    inner = [line.strip(" │─╭╮╰╯") for line in plain.splitlines()[1:]]
    lines = ["" if set(line) <= {"-"} else line for line in inner]  # rules are dashes where the terminal is not UTF-8
    paragraph = itertools.takewhile(bool, itertools.dropwhile(operator.not_, lines))
    # What a dataclass refuses names its field itself.
    message = re.sub(r"^Error parsing \w[\w.]*: ", "", _one_line(" ".join(paragraph)))
    nearest = did_you_mean_choice(message)
    if message.startswith("Unrecognized options: "):
        words = message.partition(": ")[2].split(", ")
        nearest = "".join(did_you_mean_option(word, options) for word in words if word.startswith("-"))
        message += "."
    raise ValueError(f"{message}{nearest} (--help lists every option)")


def _one_line(message: str) -> str:
    return re.sub(r"\s*\n\s*", " ", message.strip())
