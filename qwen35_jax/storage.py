"""Files and folders that are written whole or not at all, and fingerprints of what is read."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_SAMPLE_BYTES = 4096


def write_atomically(path: Path, text: str) -> None:
    """Writes a file at once: a reader, or a restart after a crash, sees either the old content or the new."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file for people to read, as ``write_atomically`` does."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a folder to fill. It appears under its name only when everything in it is written.

    Raises:
      ValueError: the path exists and is not an empty folder; nothing is ever overwritten.
    """
    out = Path(path)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} already exists and is not an empty folder; choose another path or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        yield folder
        os.replace(folder, out)


def replace_folder(path: Path, new: Path) -> None:
    """Moves a finished folder to ``path`` and removes the folder that was there. Both have the same parent folder.

    A crash in between leaves the replaced folder beside ``path``, with ``.old`` at the end of its name. The next call
    removes it.
    """
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def make_writable_folder(path: Path) -> None:
    """Makes the folder if it is absent, and checks that files can be made in it.

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


def user_cache(name: str) -> Path:
    """Returns the folder, which may be absent, in which the user's cache keeps what ``name`` stands for."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "qwen35-jax" / name


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a whole file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(files: Iterable[Path]) -> str:
    """Hashes the names, the sizes and some samples of files. It is cheap for large files and ignores their folder."""
    digest = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        for sample in read_samples(path, 16):
            digest.update(sample)
    return digest.hexdigest()


def read_samples(path: Path, count: int) -> Iterator[bytes]:
    """Yields samples of 4 KiB, evenly spaced from the start of a file to its end."""
    reach = max(path.stat().st_size - _SAMPLE_BYTES, 0)
    with path.open("rb") as file:
        for i in range(count):
            file.seek(i * reach // (count - 1))
            yield file.read(_SAMPLE_BYTES)
