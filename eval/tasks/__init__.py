"""The tasks by name. Each is a file of this package that holds everything about one benchmark and defines ``TASK``."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.tasks.base import Task
from qwen35_jax.storage import file_digest
from qwen35_jax.wording import did_you_mean

TASKS = (
    "ceval", "gpqa_diamond", "gsm8k", "ifeval", "mathvista", "mmbench", "mmlu", "mmlu_pro", "mmlu_redux", "mmmu",
    "ocrbench", "qa", "realworldqa", "refcoco", "supergpqa", "videomme", "videomme_no_subtitles",
)  # fmt: skip


def get_task(name: str) -> Task:
    """Returns a task.

    Args:
      name: one of ``TASKS``, or the path of a Python file of the user's that defines ``TASK``.

    Raises:
      ValueError: there is none of that name, or the file defines none that can be used.
    """
    if name.endswith(".py"):
        return _task_of_file(Path(name))
    if name not in TASKS:
        listed = " Put spaces between the names." if "," in name else did_you_mean(name, TASKS)
        raise ValueError(
            f"task {name!r} does not exist; choose from {', '.join(TASKS)}, or give a Python file that defines TASK."
            f"{listed}"
        )
    # Imported when asked for, so that a task's file can also be run as a command.
    return importlib.import_module(f"eval.tasks.{name}").TASK


def digests_of_files(names: Sequence[str]) -> dict[str, str]:
    """Returns the SHA-256 of each task that is a Python file of the user's: its prompts and scores follow from it."""
    return {name: file_digest(Path(name)) for name in names if name.endswith(".py")}


def _task_of_file(path: Path) -> Task:
    if not path.is_file():
        raise ValueError(f"task {str(path)!r} is no file; give the path of a Python file that defines TASK.")
    module_name = f"own_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # data classes look their module up
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, TypeError) as err:
        raise ValueError(f"cannot read the task {path}: {type(err).__name__}: {err}") from err
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise ValueError(f"{path}: TASK is {type(task).__name__}; define TASK = Task(...) of eval.tasks.base.")
    if task.name in TASKS or not re.fullmatch(r"\w[\w.-]*", task.name):
        raise ValueError(
            f"{path}: TASK has the name {task.name!r}; take letters, digits, '_', '-' and none of {', '.join(TASKS)}."
        )
    return task
