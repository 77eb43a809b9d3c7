"""Stores what a teacher says about the data of a run, so that the run can be distilled without the teacher.

    python -m train.teach CONFIG.py [--teacher.path DIR] [--teacher.store DIR] [--data.path FILE] ...

It takes the run file and the options of ``python -m train.distill`` and writes the signal of the teacher for every
document, those of the validation data too, into the folder that ``teacher.store`` names. ``python -m train.distill``
with the same ``--teacher.store`` then trains from it, in any order, on any mesh and as often as one likes.

The same command, run again, goes on after the last file that is whole. Exit codes: 0 done, 2 wrong input (one line on
stderr), 74 the machine failed, 130 ended by Ctrl-C. On several hosts the same command runs on each, and all of them see
the folder under the same path.
"""

import sys
from collections.abc import Sequence

from qwen35_jax.command import one_line_errors
from qwen35_jax.wording import options_as_typed, options_of
from train.command import read_command_line, start_processes
from train.config import Distillation, TrainConfig
from train.signals.teaching import write_store

_PROGRAM = "python -m train.teach"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends in one line on stderr and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    with one_line_errors(), options_as_typed(lambda: options_of(TrainConfig)):
        config = read_command_line(argv, program=_PROGRAM, objective=Distillation)
        if config.options.plan is not None:
            raise ValueError(
                f"--plan: {_PROGRAM} makes no plan; `python -m train.distill` does, and says what a live teacher needs."
            )
        start_processes(config)
        write_store(config)


if __name__ == "__main__":
    main()
