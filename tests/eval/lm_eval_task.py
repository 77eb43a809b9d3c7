"""A task of the installed lm-evaluation-harness on rows that a test makes, without the hub."""

from pathlib import Path

import pytest


def lm_eval_task(config, rows):
    """Returns the task.

    Args:
      config: its file below ``lm_eval/tasks``, with what it includes in the same folder.
      rows: of each split.
    """
    folder = lm_eval_tasks()
    datasets = pytest.importorskip("datasets", reason="lm_eval needs it")
    from lm_eval.api.task import ConfigurableTask

    class LocalTask(ConfigurableTask):
        def download(self, *args, **kwargs):
            self.dataset = {name: datasets.Dataset.from_list(split) for name, split in rows.items()}

    return LocalTask(config=read_config(folder / config))


def lm_eval_tasks():
    """Returns the folder with the tasks' files."""
    return Path(pytest.importorskip("lm_eval", reason="needs the extra eval").__file__).parent / "tasks"


def read_config(path):
    """Returns a task's settings with those that it includes."""
    yaml = pytest.importorskip("yaml")
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    included = settings.pop("include", None)
    return (read_config(path.parent / included) if included else {}) | settings
