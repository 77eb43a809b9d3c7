"""Whether the processes of a run agree, before they begin to work together."""

import hashlib
from pathlib import Path

import jax

import qwen35_jax
from qwen35_jax.distributed import gather
from train.record import RunRecord, differences


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
