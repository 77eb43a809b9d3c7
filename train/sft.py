"""Supervised fine-tuning from a run file.

    python -m train.sft CONFIG.py [--workdir DIR] [--model.path DIR] [--data.path FILE] [--steps N] ...
    python -m train.sft CONFIG.py --plan v5e:2x4 [--plan-json FILE] [--plan-price DOLLARS]

The same command, run again, resumes from the newest checkpoint of the run directory. Exit codes: 0 done, 2 wrong input
(one line on stderr), 74 the machine failed (disk, memory, device), 75 ended by SIGTERM or Ctrl-C after a checkpoint of
the step: run it again, 130 ended at once by a second Ctrl-C. On several hosts the same command runs on each.

With ``--plan`` it trains nothing and prints what the run would need on TPUs of that kind.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from qwen35_jax.command import config_from_command_line, one_line_errors
from qwen35_jax.compiled import keep_compiled_programs
from qwen35_jax.distributed import join, leave_out_absent_tpu
from qwen35_jax.wording import options_as_typed, options_of
from train.config import Supervised, TrainConfig
from train.leave import leave_hanging_saves
from train.plan import print_plan
from train.run import run

_PROGRAM = "python -m train.sft"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends in one line on stderr and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    with leave_hanging_saves(), one_line_errors(), options_as_typed(lambda: options_of(TrainConfig)):
        config = config_from_command_line(argv, TrainConfig, program=_PROGRAM)
        if not isinstance(config.recipe.objective, Supervised):
            raise ValueError(
                f"the objective of {argv[0]} is {type(config.recipe.objective).__name__}, but {_PROGRAM} needs "
                f"{Supervised.__name__}; give a run file written for this command."
            )
        if config.options.plan is not None:
            print_plan(config, config.options.plan)
            return
        leave_out_absent_tpu()
        join(config.options.processes)
        _set_up_logging()
        keep_compiled_programs()
        run(config, config.options.workdir or Path("runs", Path(argv[0]).stem))


def _set_up_logging() -> None:
    """Sends the logs of process 0 to stdout; stderr carries the progress bar and, if need be, one line of error."""
    # force: some imported libraries install handlers of their own.
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(levelname)s %(message)s", force=True)
    for name in ("qwen35_jax", "train"):
        logging.getLogger(name).setLevel(logging.INFO if jax.process_index() == 0 else logging.ERROR)
    # Orbax logs the tracebacks of errors that it raises as well, and leaves some of its tasks' errors to asyncio.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


if __name__ == "__main__":
    main()
