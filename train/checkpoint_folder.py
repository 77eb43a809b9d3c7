"""Where checkpoints are kept: how a save becomes valid there, what is left of one that was killed, and how one goes."""

import contextlib
import shutil
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import orbax.checkpoint as ocp

from qwen35_jax import gcs
from qwen35_jax.runs import COMMIT, Folder, find_damage, saved_steps

# Beside the folder, so that it stays when the folder is emptied.
_MARK = ".checkpoint-was-written"
_DELETED = ".deleted-"


class CheckpointFolder(Protocol):
    """A folder that holds a folder for each saved step."""

    directory: Folder

    def being_written(self, step: int) -> Folder:
        """Returns where the files of a step are that orbax is about to declare finished."""
        ...

    def saving(self) -> AbstractContextManager[None]:
        """Turns what orbax raises while it writes into an ``OSError``."""
        ...

    def confirm(self, step: int) -> None:
        """Makes sure that a finished save is whole, and remembers that there was one. Process 0 calls it.

        Raises:
          BucketError: the bucket lost a part of it.
        """
        ...

    @property
    def was_written(self) -> bool:
        """Whether a save was ever confirmed here, even if its checkpoint is gone."""
        ...

    def clear(self, steps: Collection[int]) -> None:
        """Removes these steps, and what interrupted saves left."""
        ...


class OnDisk:
    """A step is written to a temporary folder, which gets the step's name when it is whole."""

    def __init__(self, directory: Path):
        self.directory: Folder = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._mark = Path(self.directory.parent, _MARK)

    def being_written(self, step: int) -> Folder:
        [folder] = self.directory.glob(f"{step}.*")
        return folder

    def saving(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()  # It is an OSError already.

    def confirm(self, step: int) -> None:
        self._mark.touch()

    @property
    def was_written(self) -> bool:
        return self._mark.exists()

    def clear(self, steps: Collection[int]) -> None:
        names = set(map(str, steps))
        for path in list(Path(self.directory).iterdir()):
            if path.name in names:
                path = path.rename(path.with_name(_DELETED + path.name))
            if path.name.startswith(_DELETED) or ocp.utils.TMP_DIR_SUFFIX in path.name:
                shutil.rmtree(path)


class InBucket:
    """A step is written under its own name, and is finished when its last object is there.

    A bucket may confirm a write and lose it, so a save counts after a listing has shown all of it. Orbax is never asked
    to remove anything, since it would need the right to read the bucket's settings.
    """

    def __init__(self, directory: Folder):
        self.directory = directory
        self._mark = directory.parent / _MARK
        self._confirmed: int | None = None

    def being_written(self, step: int) -> Folder:
        return self.directory / str(step)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        try:
            with gcs.bucket_errors(self.directory):
                yield
        except ValueError as err:
            # Orbax reads some of what it has just written, and says in many ways that it is not there.
            reason = str(err).strip().splitlines()[0][:200]
            raise gcs.BucketError(
                f"{self.directory}: a checkpoint could not be written ({reason}).", fault=True
            ) from err

    def confirm(self, step: int) -> None:
        if step == self._confirmed:
            return
        folder = self.directory / str(step)
        finished = step in saved_steps(self.directory)
        problem = find_damage(folder) if finished else f"{COMMIT}, which is written last, is missing"
        if problem is not None:
            raise gcs.BucketError(f"{folder} was written, but {problem}: the bucket loses writes.", fault=True)
        if self._confirmed is None:
            gcs.write_bytes(self._mark, b"")
        self._confirmed = step

    @property
    def was_written(self) -> bool:
        return "" in gcs.list_files(self._mark)

    def clear(self, steps: Collection[int]) -> None:
        stay = {str(step) for step in saved_steps(self.directory)} - set(map(str, steps))
        folders = {name.split("/")[0] for name in gcs.list_files(self.directory)}
        for name in filter(str.isdigit, folders - stay):
            # Without its last object it is no checkpoint any more, however far the removal gets.
            gcs.remove(self.directory / name, first=(COMMIT,))


def folder_of_checkpoints(directory: Folder) -> CheckpointFolder:
    """Returns the folder on a disk, which is made if absent, or in a bucket."""
    return InBucket(directory) if gcs.is_address(directory) else OnDisk(Path(directory))
