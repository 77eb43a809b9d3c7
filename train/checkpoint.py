"""Checkpoints that are either whole or skipped: orbax files with a manifest, and the position in the data.

A step is written while training goes on. At the end it gets its manifest (``qwen35_jax.runs`` has the format), then it
becomes valid at once. So a kill at any moment leaves whole steps and unfinished ones, which do not count. A step that
does not match its manifest was damaged later, or renamed by a file system that renames file by file.
"""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from qwen35_jax.runs import (
    DATA,
    STATE,
    Folder,
    find_damage,
    name_arrays,
    saved_steps,
    storage_errors,
    whole_steps,
    write_manifest,
)
from train.checkpoint_folder import folder_of_checkpoints
from train.retention import steps_to_keep
from train.state import TrainState

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves and restores the state and the data position of one run in ``directory``, on a disk or in a bucket.

    Under several processes all of them make the same calls; each writes and reads its own part of the arrays.
    """

    def __init__(self, directory: Folder, *, keep: int, keep_every: int | None = None):
        self._folder = folder_of_checkpoints(directory)
        self.directory = self._folder.directory
        self.keep, self.keep_every = keep, keep_every
        self.scores: Mapping[int, float] = {}
        """Of evaluated steps; the lowest is the best, which stays."""
        self._saving: int | None = None
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(STATE, DATA),
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
        args = {STATE: ocp.args.StandardSave(name_arrays(state)), DATA: ocp.args.JsonSave(data_state)}
        with self._folder.saving():
            self._checkpointer.save(self.directory / str(self._saving), args=ocp.args.Composite(**args))

    def wait(self) -> None:
        """Returns when the last save is written and whole.

        Raises:
          OSError: it could not be written.
        """
        with self._folder.saving():
            self._checkpointer.wait_until_finished()
        if self._saving is not None and jax.process_index() == 0:
            self._folder.confirm(self._saving)

    def where_to_go_on(self) -> str:
        """Says from where the run goes on, for a line about what ended it."""
        steps = saved_steps(self.directory)
        where = f"go on after step {max(steps)}" if steps else "begin again, as no checkpoint was finished yet"
        return f"run the same command again to {where}"

    @property
    def was_written(self) -> bool:
        """Whether a save was ever finished here, even if its checkpoint is gone."""
        return self._folder.was_written

    def whole_steps(self) -> list[int]:
        """Returns the steps that can be restored, in ascending order."""
        return whole_steps(self.directory)

    def latest_whole_step(self) -> int | None:
        """Returns the newest step that can be restored, or None if no save was ever finished.

        Damaged checkpoints are skipped with a warning.

        Raises:
          ValueError: there are checkpoints, but none is whole.
        """
        problems = {}
        for step in reversed(saved_steps(self.directory)):
            problem = find_damage(self.directory / str(step))
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
        names = name_arrays(like)
        args = {STATE: ocp.args.StandardRestore(names), DATA: ocp.args.JsonRestore()}
        with storage_errors(self.directory):
            restored = self._checkpointer.restore(self.directory / str(step), args=ocp.args.Composite(**args))
        leaves = [restored[STATE][name] for name in names]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), restored[DATA]

    def close(self) -> None:
        """Waits for the last save and removes the steps that it makes superfluous."""
        self.wait()
        self._saving = None
        if jax.process_index() == 0:
            self._make_room()
        self._checkpointer.close()

    def _write_manifest(self) -> None:
        """Completes the step being saved; orbax calls it in process 0, before it makes the step valid."""
        assert self._saving is not None
        write_manifest(self._folder.being_written(self._saving))

    def _make_room(self) -> None:
        """Removes what interrupted saves left, a damaged checkpoint of the step to save, and what need not stay.

        Only whole checkpoints count, and the newest of them always stays. Damaged ones go once a newer one is whole.
        """
        steps, whole = saved_steps(self.directory), self.whole_steps()
        stay = steps_to_keep(whole, keep=self.keep, keep_every=self.keep_every, scores=self.scores)
        stay |= {step for step in steps if not whole or step > whole[-1]}
        again = set() if self._saving is None else {self._saving}
        self._folder.clear(({*steps} - stay) | again)
