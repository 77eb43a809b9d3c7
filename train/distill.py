"""Distillation from a teacher, from a run file.

    python -m train.distill CONFIG.py [--workdir DIR] [--model.path DIR] [--teacher.path DIR] [--data.path FILE] ...
    python -m train.distill CONFIG.py --teacher.store DIR ...
    python -m train.distill CONFIG.py --plan v5e:2x4 [--plan-json FILE] [--plan-price DOLLARS]

The teacher answers live, or from the store that ``python -m train.teach`` wrote. With ``rollouts`` in the run file the
student is taught on answers that it samples itself. All else is as with ``python -m train.sft``, exit codes too.
"""

from collections.abc import Sequence

from train.command import train_from_command_line
from train.config import Distillation


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends in one line on stderr and exit code 2."""
    train_from_command_line(argv, program="python -m train.distill", objective=Distillation)


if __name__ == "__main__":
    main()
