"""Checkpoints that are either whole or skipped: orbax files with a manifest, and the position in the data.

A step is written to a temporary folder while training goes on. Last of all the folder gets its ``manifest.json`` (names
and sizes of its files), then its name, the step. So a kill at any moment leaves whole steps and temporary folders; a
step that does not match its manifest was damaged later, or renamed by a file system that does so file by file.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from qwen35_jax.storage import write_atomically
from train.state import TrainState

MANIFEST = "manifest.json"
# Written by orbax between the manifest and the renaming; nothing is restored from them.
_UNLISTED = (MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt")
_DELETED = ".deleted-"

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves and restores the state and the data position of one run in ``directory``, which is made if absent.

    Under several processes all of them make the same calls; each writes and reads its own part of the arrays.
    """

    def __init__(self, directory: Path, *, keep: int):
        self.directory = directory.absolute()
        self.keep = keep
        self._saving: int | None = None
        self.directory.mkdir(parents=True, exist_ok=True)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler("state", "data"),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_manifest),
        )

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Saves under ``state.step``, replacing a damaged checkpoint of that step.

        Returns once the arrays are copied to the host, so that the state may be donated; the files are written
        meanwhile. A save that is still under way is waited for.

        Raises:
          OSError: this or the previous save could not be written.
        """
        self.wait()
        self._saving = int(state.step)
        if jax.process_index() == 0:
            self._make_room()
        args = ocp.args.Composite(state=ocp.args.StandardSave(_named(state)), data=ocp.args.JsonSave(data_state))
        self._checkpointer.save(self.directory / str(self._saving), args=args)

    def wait(self) -> None:
        """Returns when the last save is on disk and whole.

        Raises:
          OSError: it could not be written.
        """
        self._checkpointer.wait_until_finished()

    def latest_whole_step(self) -> int | None:
        """Returns the newest step that can be restored, or None if no save was ever finished.

        Damaged checkpoints are skipped with a warning.

        Raises:
          ValueError: there are checkpoints, but none is whole.
        """
        problems = {}
        for step in sorted(self._steps(), reverse=True):
            problem = _problem(self.directory / str(step))
            if problem is None:
                return step
            logger.warning("checkpoint %s is skipped: %s", self.directory / str(step), problem)
            problems[step] = problem
        if problems:
            newest = max(problems)
            raise ValueError(
                f"{self.directory} holds checkpoints of the steps {sorted(problems)}, but none is whole "
                f"(step {newest}: {problems[newest]}). Nothing was changed: restore one from a copy, or "
                "begin again with another --workdir."
            )
        return None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state and the data position of a step.

        Args:
          like: shapes, dtypes and placement, as ``train.state.abstract`` returns them. The placement need not be
            that of the saved state.
        """
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_named(like)), data=ocp.args.JsonRestore())
        restored = self._checkpointer.restore(self.directory / str(step), args=args)
        leaves = [restored.state[name] for name in _named(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), restored.data

    def close(self) -> None:
        """Waits for the last save and removes the steps that it makes superfluous."""
        self.wait()
        self._saving = None
        if jax.process_index() == 0:
            self._make_room()
        self._checkpointer.close()

    def _write_manifest(self) -> None:
        """Completes the temporary folder of the step being saved; orbax calls it in process 0, before renaming."""
        [folder] = self.directory.glob(f"{self._saving}.*")
        write_atomically(folder / MANIFEST, json.dumps(_sizes(folder), indent=1))

    def _make_room(self) -> None:
        """Removes what interrupted saves left, a damaged checkpoint of the step to save, and all but the newest."""
        steps = sorted(self._steps())
        superfluous = {str(step) for step in (*steps[: -self.keep], self._saving)}
        for path in list(self.directory.iterdir()):
            if path.name in superfluous:
                path = path.rename(path.with_name(_DELETED + path.name))
            if path.name.startswith(_DELETED) or ocp.utils.TMP_DIR_SUFFIX in path.name:
                shutil.rmtree(path)

    def _steps(self) -> Iterator[int]:
        return (int(path.name) for path in self.directory.iterdir() if path.name.isdigit())


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
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.stat().st_size for name, path in files.items() if name not in _UNLISTED}


def _problem(folder: Path) -> str | None:
    """Says what keeps a step folder from being restored, or None."""
    try:
        wanted = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so its files cannot be told to be all there"
    except ValueError:
        return f"its {MANIFEST} is cut short"
    present = _sizes(folder)
    for name, size in wanted.items():
        if name not in present:
            return f"{name} is missing"
        if present[name] != size:
            return f"{name} has {present[name]} bytes instead of {size}"
    return None
