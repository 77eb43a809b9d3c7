"""Checkpoints that are either whole or skipped: orbax files with a manifest, and the position in the data.

A step folder counts once its ``manifest.json`` (names and sizes of its files) exists. While a step is being saved,
``checkpoints.saving`` beside the folder names it, which tells an interrupted save from a damaged checkpoint.
"""

import json
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from train.files import write_atomically
from train.state import TrainState

MANIFEST = "manifest.json"

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves and restores the state and the data position of one run in ``directory``."""

    def __init__(self, directory: Path, *, keep: int):
        self.directory = directory.absolute()
        self.keep = keep
        self._saving = self.directory.with_name(self.directory.name + ".saving")
        # Old steps are deleted here, after the manifest of the new one is written, not by orbax before.
        options = ocp.CheckpointManagerOptions(max_to_keep=None, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Saves under ``state.step``, replacing a damaged checkpoint of that step; then drops old ones."""
        step, first = int(state.step), jax.process_index() == 0
        if first:
            write_atomically(self._saving, str(step))
        if step in self._manager.all_steps():
            self._manager.delete(step)
        args = ocp.args.Composite(state=ocp.args.StandardSave(_named(state)), data=ocp.args.JsonSave(data_state))
        self._manager.save(step, args=args)
        if first:
            folder = self.directory / str(step)
            write_atomically(folder / MANIFEST, json.dumps(_sizes(folder), indent=1))
            self._saving.unlink()
        for old in sorted(self._manager.all_steps())[: -self.keep]:
            self._manager.delete(old)

    def latest_whole_step(self) -> int | None:
        """Returns the newest step that can be restored, or None if no save was ever finished.

        Damaged checkpoints are skipped with a warning.

        Raises:
          ValueError: there are checkpoints, but none is whole.
        """
        unfinished = int(self._saving.read_text()) if self._saving.is_file() else None
        problems = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            problem = _problem(self.directory / str(step))
            if problem is None:
                return step
            logger.warning("checkpoint %s is skipped: %s", self.directory / str(step), problem)
            problems[step] = problem
        damaged = [step for step in problems if step != unfinished]
        if damaged:
            raise ValueError(
                f"{self.directory} holds checkpoints of the steps {sorted(problems)}, but none is whole "
                f"(step {damaged[0]}: {problems[damaged[0]]}). Nothing was changed: restore one from a copy, or "
                "begin again with another --workdir."
            )
        return None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state and the data position of a step.

        Args:
          like: shapes, dtypes and placement, as ``train.state.abstract`` returns them.
        """
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_named(like)), data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        leaves = [restored.state[name] for name in _named(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), restored.data

    def close(self) -> None:
        self._manager.close()


def _named(state: TrainState) -> dict[str, Any]:
    """Flattens a state into dotted names, which do not depend on the classes of its containers."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {".".join(_key_name(key) for key in path): leaf for path, leaf in leaves}


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise AssertionError(f"unknown kind of tree key: {key!r}")


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _problem(folder: Path) -> str | None:
    """Says what keeps a step folder from being restored, or None."""
    try:
        wanted = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was never finished"
    except ValueError:
        return f"its {MANIFEST} is cut short"
    present = _sizes(folder)
    for name, size in wanted.items():
        if name not in present:
            return f"{name} is missing"
        if present[name] != size:
            return f"{name} has {present[name]} bytes instead of {size}"
    return None
