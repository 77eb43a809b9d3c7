"""What the commands that train have in common: settings, the processes of a run, logging, one-line errors."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from qwen35_jax.command import config_from_command_line, one_line_errors
from qwen35_jax.compiled import keep_compiled_programs
from qwen35_jax.distributed import join, leave_out_absent_tpu
from qwen35_jax.wording import options_as_typed, options_of
from train.config import DataConfig, ModelSource, Recipe, TrainConfig
from train.leave import leave_hanging_saves
from train.plan import print_plan
from train.run import run


def train_from_command_line(argv: Sequence[str] | None, *, program: str, objective: type) -> None:
    """Trains as a run file and the command line say, or prints the plan of it.

    Wrong input ends in one line on stderr and exit code 2.

    Args:
      argv: the arguments after the program's name, by default those of this process.
      program: how the user calls it.
      objective: what the run file must minimise.
    """
    argv = sys.argv[1:] if argv is None else argv
    with leave_hanging_saves(), one_line_errors(), options_as_typed(lambda: options_of(TrainConfig)):
        config = read_command_line(argv, program=program, objective=objective)
        if config.options.plan is not None:
            print_plan(config, config.options.plan)
            return
        start_processes(config)
        run(config, config.options.workdir or Path("runs", Path(argv[0]).stem))


def read_command_line(argv: Sequence[str], *, program: str, objective: type) -> TrainConfig:
    """Returns the settings of a run file with the overrides of the command line.

    Raises:
      ValueError: there is no run file, it was written for another command, or an override is wrong.
    """
    example = TrainConfig(Recipe(ModelSource(), DataConfig(path="FILE"), steps=1_000, objective=objective()))
    config = config_from_command_line(argv, TrainConfig, program=program, example=example)
    found = type(config.recipe.objective)
    if not issubclass(found, objective):
        raise ValueError(
            f"the objective of {argv[0]} is {found.__name__}, but {program} needs {objective.__name__}; give a run "
            "file written for this command."
        )
    return config


def start_processes(config: TrainConfig) -> None:
    """Joins the processes of a run and sets up what each of them logs and compiles."""
    leave_out_absent_tpu()
    join(config.options.processes)
    _set_up_logging()
    keep_compiled_programs()


def _set_up_logging() -> None:
    """Sends the logs of process 0 to stdout; stderr carries the progress bar and, if need be, one line of error."""
    # force: some imported libraries install handlers of their own.
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(levelname)s %(message)s", force=True)
    for name in ("qwen35_jax", "train"):
        logging.getLogger(name).setLevel(logging.INFO if jax.process_index() == 0 else logging.ERROR)
    # Orbax logs the tracebacks of errors that it raises as well, and leaves some of its tasks' errors to asyncio.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
