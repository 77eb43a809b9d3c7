"""Brings local files into a bucket so that a reader never takes half of them for the whole."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from qwen35_jax import gcs
from qwen35_jax.storage import user_cache

# What others look for first in a folder of weights or an adapter: without these nothing is loaded.
_VALIDATING = ("model.safetensors.index.json", "adapter_config.json", "config.json")


class Mirror:
    """A local folder whose files are copied into a bucket, each when it changed since the last time.

    Args:
      leave_out: names directly in the folder that are not copied.
    """

    def __init__(self, local: Path, address: str, *, leave_out: Iterable[str] = ()):
        self._local, self._address, self._leave_out = local, address, frozenset(leave_out)
        self._sent: dict[str, tuple[int, int]] = {}

    def push(self) -> None:
        """Copies what changed.

        Raises:
          BucketError: the bucket refuses or loses a file. The next push tries again.
        """
        stamps = {}
        for name, path in _files_below(self._local).items():
            stamp = _stamp(path)
            if name.split("/")[0] in self._leave_out or self._sent.get(name) == stamp:
                continue
            gcs.upload(path, f"{self._address}/{name}")
            if _stamp(path) == stamp:  # Otherwise somebody was writing it, and the next push copies it again.
                stamps[name] = stamp
        if stamps:
            check_written(self._address, {name: size for name, (size, _) in stamps.items()})
            self._sent |= stamps


def _stamp(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


def _files_below(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def publish_folder(folder: Path, address: str) -> None:
    """Replaces what is below an address by a local folder.

    What makes the old one loadable goes first, and what makes the new one loadable comes last. So in between, and for
    ever after a crash in between, there is nothing that can be loaded.

    Raises:
      BucketError: the bucket refuses or loses a file.
    """
    new = _files_below(folder)
    last = [name for name in _VALIDATING if name in new]
    old = gcs.file_sizes(address).keys()
    for name in reversed(_VALIDATING):
        if name in old:
            gcs.remove(f"{address}/{name}")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: gcs.upload(new[name], f"{address}/{name}"), new.keys() - set(last)))
    for name in old - new.keys() - set(_VALIDATING):
        gcs.remove(f"{address}/{name}")
    check_written(address, {name: path.stat().st_size for name, path in new.items() if name not in last})
    for name in last:
        gcs.upload(new[name], f"{address}/{name}")
    check_written(address, {name: path.stat().st_size for name, path in new.items()})


def check_new(out: str) -> None:
    """Refuses a place for a new folder that is taken, before anything large is loaded for it.

    Raises:
      ValueError: there are files, or it is an address that nothing can be written to.
      BucketError: the bucket cannot be listed.
    """
    gcs.check_scheme(out)
    if gcs.is_address(out):
        taken = bool(gcs.list_files(out))
    else:
        path = Path(out)
        taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if taken:
        raise ValueError(f"{out} exists and is not an empty folder; choose another --out or remove it.")


@contextlib.contextmanager
def folder_for(out: str) -> Iterator[Path]:
    """Yields where to write a folder: its own path, or a local folder that ``deliver`` publishes."""
    if not gcs.is_address(out):
        yield Path(out)
        return
    scratch = user_cache("gs") / "outgoing"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as parent:
        yield Path(parent) / PurePosixPath(out).name


def deliver(folder: Path, out: str) -> None:
    """Publishes what was written for ``out``, where that is an address.

    Raises:
      BucketError: the bucket refuses or loses a file.
    """
    if gcs.is_address(out):
        publish_folder(folder, out.rstrip("/"))


def check_written(address: str, sizes: Mapping[str, int]) -> None:
    """Raises a ``BucketError`` if one of these objects is not below the address in its size, in bytes."""
    present = gcs.file_sizes(address)
    for name, size in sizes.items():
        if present.get(name) != size:
            found = f"has {present[name]} bytes" if name in present else "is missing"
            raise gcs.BucketError(
                f"{address}/{name} {found} right after {size} bytes were written: the bucket loses writes.", fault=True
            )
