"""Supervised fine-tuning from a run file.

    python -m train.sft CONFIG.py [--workdir DIR] [--model.path DIR] [--data.path FILE] [--steps N] ...
    python -m train.sft CONFIG.py --plan v5e:2x4 [--plan-json FILE] [--plan-price DOLLARS]

Run again with the same arguments, it resumes from the newest checkpoint of the run directory. Exit codes: 0 done,
2 wrong input (one line on stderr), 75 ended by SIGTERM after a checkpoint of the step: run it again. On several hosts
the same command runs on each.

With ``--plan`` it trains nothing and prints what the run would need on TPUs of that kind.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from qwen35_jax.command import config_from_command_line, one_line_errors
from qwen35_jax.distributed import join
from train.config import SFTConfig
from train.losses import Objective, sft_objective
from train.plan import print_plan
from train.run import run


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends in one line on stderr and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    with one_line_errors():
        cfg = config_from_command_line(argv, SFTConfig, program="python -m train.sft")
        if cfg.plan is not None:
            print_plan(cfg, objective)
            return
        join(cfg.processes)
        _set_up_logging()
        workdir = Path(cfg.workdir or Path("runs", Path(argv[0]).stem))
        run(cfg, workdir, objective(cfg))


def objective(cfg: SFTConfig) -> Objective:
    return sft_objective(cfg.mtp, loss_chunk=cfg.loss_chunk, remat=cfg.model.remat)


def _set_up_logging() -> None:
    """Sends process 0's logs to stdout, for stderr carries the progress bar and, if need be, one line of error."""
    # force: some imported libraries install handlers of their own.
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(levelname)s %(message)s", force=True)
    for name in ("qwen35_jax", "train"):
        logging.getLogger(name).setLevel(logging.INFO if jax.process_index() == 0 else logging.ERROR)


if __name__ == "__main__":
    main()
