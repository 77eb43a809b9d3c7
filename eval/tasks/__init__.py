"""The tasks by name. Each is a file of this package that holds everything about one benchmark and defines ``TASK``."""

import importlib

from eval.tasks.base import Task
from qwen35_jax.wording import did_you_mean

TASKS = ("ceval", "gpqa_diamond", "gsm8k", "ifeval", "mmlu", "mmlu_pro", "mmlu_redux", "qa", "supergpqa")


def get_task(name: str) -> Task:
    """Returns a task.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in TASKS:
        listed = " Put spaces between the names." if "," in name else did_you_mean(name, TASKS)
        raise ValueError(f"task {name!r} does not exist; choose from {', '.join(TASKS)}.{listed}")
    # Imported when asked for, so that a task's file can also be run as a command.
    return importlib.import_module(f"eval.tasks.{name}").TASK
