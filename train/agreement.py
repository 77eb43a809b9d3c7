"""What the processes of a run agree on: before they begin to work together, and before every step."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

import qwen35_jax
from qwen35_jax.distributed import gather, raise_together
from qwen35_jax.liveness import exchange
from train.batch import HostBatch
from train.data.pipeline import Batches
from train.record import RunRecord, differences
from train.state import TrainState


def check_agreement(record: RunRecord, done: int | None) -> None:
    """Compares what every process is about to do with what process 0 is. All processes call this.

    Args:
      done: the step that this process would resume after.

    Raises:
      ValueError: a process has other settings, data, code or versions, or sees other checkpoints. All processes raise.
    """
    own = record.to_json() | {"jax": jax.__version__, "code": _code_digest(), "newest whole checkpoint": done}
    del own["options"]["processes"]  # which process this is
    first, *others = gather(own)
    for index, other in enumerate(others, start=1):
        if found := differences(first, other):
            name, here, there = found[0]
            for part in ("recipe.", "layout.", "options."):
                name = name.removeprefix(part)
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise ValueError(
                f"the processes of the run disagree: {name} is {here!r} in process 0 and {there!r} in process "
                f"{index}{more}; start the same command from the same checkout on every host, with one shared workdir."
            )


def _code_digest() -> str:
    """Hashes the source of the library and the trainer, so that a stale checkout on one host is noticed."""
    digest = hashlib.sha256()
    for folder in (Path(qwen35_jax.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class AgreedBatches:
    """Batches that every process has, or none has: an error of one is raised by all, and none begins the step.

    After an error the position is that before the batch, so that the state of the last step can be saved with it.
    """

    def __init__(self, batches: Batches):
        self._batches = batches
        self._before: dict[str, Any] | None = None

    @property
    def needs_state(self) -> bool:
        return self._batches.needs_state

    def see(self, state: TrainState) -> None:
        self._batches.see(state)

    def __next__(self) -> HostBatch:
        """Returns the next batch.

        Raises:
          ValueError, OSError: the process's own error.
          ValueError: that of another process.
        """
        before = self._batches.get_state()
        try:
            with raise_together(exchange):
                batch = next(self._batches, None)
        except (ValueError, OSError):
            self._before = before
            raise
        if batch is None:
            raise StopIteration
        return batch

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state() if self._before is None else self._before

    def merge(self, state: dict[str, Any]) -> dict[str, Any]:
        return self._batches.merge(state)

    def figures(self) -> Mapping[str, float | int | None]:
        return self._batches.figures()

    def documents_later(self) -> Callable[[], list[list[str]]]:
        return self._batches.documents_later()

    @property
    def epoch(self) -> float:
        return self._batches.epoch
