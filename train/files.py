"""Files of a run: atomic writes, a check that a folder can be written, and cheap fingerprints of inputs."""

import hashlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

_SAMPLES, _SAMPLE_BYTES = 16, 4096


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a restart after a crash, sees the old or the new content only."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def make_writable_folder(path: Path) -> None:
    """Creates the folder if it is absent and proves that files can be made in it.

    Raises:
      ValueError: it cannot be written.
    """
    probe = path / f".writable-{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as err:
        raise ValueError(f"workdir {path} cannot be written ({err.strerror}); choose another with --workdir.") from err


def fingerprint(files: Iterable[Path]) -> str:
    """Hashes names, sizes and evenly spaced samples of files: cheap for large ones, and blind to where they lie."""
    digest = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for i in range(_SAMPLES):
                file.seek(i * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
