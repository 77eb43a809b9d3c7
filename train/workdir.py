"""The run directory: where it lies, whether a run may use it, and from which step it goes on."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import jax

from qwen35_jax import gcs
from qwen35_jax.distributed import check_shared, raise_together
from qwen35_jax.runs import CHECKPOINTS, EXPORT, Folder
from qwen35_jax.storage import make_writable_folder
from train.bucket_workdir import BucketWorkdir
from train.checkpoint import Checkpoints
from train.config import CheckpointConfig
from train.lock import lock_directory
from train.record import RunRecord, check_resumable


class Workdir(Protocol):
    """Where a run is written. Its text is the name that the user gave it."""

    local: Path
    """The folder on a disk in which everything but the checkpoints is written."""
    checkpoints: Folder

    def check(self) -> None:
        """Makes it if it is absent.

        Raises:
          ValueError, OSError: it cannot be used, or holds something else.
        """
        ...

    def names(self) -> set[str]:
        """Returns the names of what lies directly in it."""
        ...

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other runs out of it. All processes call this together.

        Raises:
          ValueError, OSError: another run works there, or not all processes can use it.
        """
        ...

    def push(self) -> None:
        """Brings what is new in ``local`` to where the run lies.

        Raises:
          BucketError: it cannot be brought there, or another run took the directory over.
        """
        ...

    def publish_export(self) -> None:
        """Brings a new export to where the run lies. All processes call this together.

        Raises:
          BucketError: as for ``push``.
        """
        ...


class LocalWorkdir:
    """A run directory on a disk."""

    def __init__(self, path: Path):
        self.local = path
        self.checkpoints: Folder = path / CHECKPOINTS

    def __str__(self) -> str:
        return str(self.local)

    def check(self) -> None:
        make_writable_folder(self.local)
        # A run makes its folder of checkpoints before anything else; other processes may be trying the folder too.
        if any(not name.startswith(".") for name in self.names()) and not self.checkpoints.is_dir():
            raise ValueError(
                f"{self} is not empty and holds no training run; choose another --workdir, or move it away."
            )

    def names(self) -> set[str]:
        return {path.name for path in self.local.iterdir()}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            with raise_together():
                if jax.process_index() == 0:
                    held.enter_context(lock_directory(self.local))
            with raise_together():
                check_shared(self.local)
            yield

    def push(self) -> None:
        """Does nothing: it is there."""

    def publish_export(self) -> None:
        """Does nothing: it is there."""


def workdir_at(place: str | Path) -> Workdir:
    """Returns the run directory of a path or an address ``gs://bucket/name``.

    Raises:
      ValueError: what gs:// needs is not installed, or the address names no bucket.
    """
    return BucketWorkdir(str(place)) if gcs.is_address(place) else LocalWorkdir(Path(place))


def open_workdir(workdir: Workdir, record: RunRecord, settings: CheckpointConfig) -> tuple[Checkpoints, int | None]:
    """Opens the checkpoints of a run directory and returns the step to resume from, if there is one.

    Raises:
      ValueError: the directory belongs to a run with other settings, or cannot be resumed.
    """
    checkpoints = Checkpoints(workdir.checkpoints, keep=settings.keep, keep_every=settings.keep_every)
    done = checkpoints.latest_whole_step()
    if done is not None:
        check_resumable(workdir.local, record, str(workdir))
        if done > record.config.recipe.num_steps:
            raise ValueError(
                f"{workdir} has done {done} steps already, more than steps={record.config.recipe.steps}; give as many, "
                "or another --workdir."
            )
    elif checkpoints.was_written or EXPORT in workdir.names():
        raise ValueError(
            f"{workdir} holds metrics or an export of a run whose checkpoints are gone, so that it cannot be resumed. "
            "Nothing was changed: put a checkpoint back from a copy, or begin again with another --workdir."
        )
    return checkpoints, done
