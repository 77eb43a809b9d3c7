"""The tasks by name."""

from eval.tasks.base import Task
from eval.tasks.gsm8k import GSM8K
from eval.tasks.ifeval import IFEVAL
from eval.tasks.qa import QA

TASKS: dict[str, Task] = {task.name: task for task in (IFEVAL, GSM8K, QA)}


def get_task(name: str) -> Task:
    """Returns a task.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r} does not exist; choose from {sorted(TASKS)}.")
    return TASKS[name]
