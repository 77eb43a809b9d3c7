"""Supervised fine-tuning from a run file.

    python -m train.sft CONFIG.py [--workdir DIR] [--model.path DIR] [--data.path FILE] [--steps N] ...
    python -m train.sft CONFIG.py --plan v5e:2x4 [--plan-json FILE] [--plan-price DOLLARS]

The same command, run again, resumes from the newest checkpoint of the run directory. Exit codes: 0 done, 2 wrong input
(one line on stderr), 74 the machine failed (disk, memory, device), 75 ended by SIGTERM or Ctrl-C after a checkpoint of
the step: run it again, 130 ended at once by a second Ctrl-C. On several hosts the same command runs on each.

With ``--plan`` it trains nothing and prints what the run would need on TPUs of that kind.
"""

from collections.abc import Sequence

from train.command import train_from_command_line
from train.config import Supervised


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends in one line on stderr and exit code 2."""
    train_from_command_line(argv, program="python -m train.sft", objective=Supervised)


if __name__ == "__main__":
    main()
