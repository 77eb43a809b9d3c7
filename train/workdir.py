"""The run directory: whether a run may use it, and from which step it goes on."""

from pathlib import Path

from qwen35_jax.storage import make_writable_folder
from train.checkpoint import Checkpoints
from train.config import CheckpointConfig
from train.record import RunRecord, check_resumable


def check_workdir(workdir: Path) -> None:
    """Makes a run directory if it is absent.

    Raises:
      ValueError: it cannot be written, or holds something else.
    """
    make_writable_folder(workdir)
    # A run makes its folder of checkpoints before anything else; other processes may be trying the folder too.
    if any(not path.name.startswith(".") for path in workdir.iterdir()) and not (workdir / "checkpoints").is_dir():
        raise ValueError(
            f"{workdir} is not empty and holds no training run; choose another --workdir, or move it away."
        )


def open_workdir(workdir: Path, record: RunRecord, settings: CheckpointConfig) -> tuple[Checkpoints, int | None]:
    """Opens the checkpoints of a run directory and returns the step to resume from, if there is one.

    Raises:
      ValueError: the directory belongs to a run with other settings, or cannot be resumed.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", keep=settings.keep, keep_every=settings.keep_every)
    done = checkpoints.latest_whole_step()
    if done is not None:
        check_resumable(workdir, record)
        if done > record.config.recipe.num_steps:
            raise ValueError(
                f"{workdir} has done {done} steps already, more than steps={record.config.recipe.steps}; give as many, "
                "or another --workdir."
            )
    elif checkpoints.was_written or (workdir / "export").exists():
        raise ValueError(
            f"{workdir} holds metrics or an export of a run whose checkpoints are gone, so that it cannot be resumed. "
            "Nothing was changed: put a checkpoint back from a copy, or begin again with another --workdir."
        )
    return checkpoints, done
