"""The ``qwen35`` command: finds the command that is meant and runs it.

Only the file of that command is imported, so that ``qwen35 --help`` answers at once and a command needs no more
packages than its own.
"""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from qwen35_jax.command import one_line_errors, tell_version
from qwen35_jax.wording import did_you_mean_choice, did_you_mean_option, options_as_typed, options_by_name

# The file in ``qwen35_jax.commands`` and what the command does.
COMMANDS = {
    "generate": ("generate", "answer prompts from the command line or from a file"),
    "chat": ("chat", "talk with a model line by line"),
    "bench": ("bench", "measure how fast a model answers on this machine"),
    "serve": ("serve", "answer requests over HTTP, by OpenAI's interface"),
    "plan": ("plan", "say what prefill and decoding need on a TPU: memory, requests that fit, tokens a second"),
    "export": ("checkpoints", "write what a training run has learnt as a PEFT adapter or a checkpoint"),
    "merge": ("checkpoints", "write a checkpoint with an adapter's weights added in"),
    "create": ("checkpoints", "write a checkpoint of random weights, of any size"),
}
# Which extra has the packages that a command needs beyond the library's.
EXTRAS = {"serve": "serve", "plan": "plan"}


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; wrong input ends in one line on stderr and exit code 2.

    Args:
      argv: the arguments after the program's name, by default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    tell_version(arguments)
    args, unknown = make_parser(*arguments[:1]).parse_known_args(arguments)
    options = options_by_name(vars(args))
    if unknown:
        nearest = "".join(did_you_mean_option(word, options.values()) for word in unknown if word.startswith("-"))
        raise ValueError(f"unknown options: {' '.join(unknown)}.{nearest} (--help lists them)")
    _prepare_devices()
    with options_as_typed(lambda: options), _missing_package_named(args.command):
        args.run(args)


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Returns a parser that knows all commands, and the options of ``command``."""
    parser = _Parser(prog="qwen35", description="Make Qwen3.5 checkpoints, generate with them, export and merge.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (file, summary) in COMMANDS.items():
        description = f"{summary[0].upper()}{summary[1:]}."
        each = commands.add_parser(name, help=summary, description=description, formatter_class=_HelpFormatter)
        if name == command:
            with _missing_package_named(name):
                module = importlib.import_module(f"qwen35_jax.commands.{file}")
            getattr(module, f"add_{name}_options")(each)
            each.set_defaults(run=getattr(module, f"run_{name}"))
    return parser


@contextlib.contextmanager
def _missing_package_named(command: str) -> Iterator[None]:
    """Says which extra to install where a command needs a package that is not there."""
    try:
        yield
    except ModuleNotFoundError as err:
        package = (err.name or "").partition(".")[0]
        if command not in EXTRAS or package == "qwen35_jax":
            raise
        raise ValueError(
            f"qwen35 {command} needs the package {package}; install the extra in the checkout: "
            f"pip install -e '.[{EXTRAS[command]}]'"
        ) from err


def _prepare_devices() -> None:
    """Imports JAX, which help and refused options do without."""
    from qwen35_jax.compiled import keep_compiled_programs
    from qwen35_jax.distributed import leave_out_absent_tpu

    leave_out_absent_tpu()
    keep_compiled_programs()


class _Parser(argparse.ArgumentParser):
    """Reports a wrong option like any other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}.{did_you_mean_choice(message)} ({self.prog} --help lists the options)")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except that of an option that is off or not given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = action.default is None or action.default is False
        return action.help if hidden else super()._get_help_string(action)


if __name__ == "__main__":
    main()
