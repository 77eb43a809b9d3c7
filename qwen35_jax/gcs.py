"""Reads and writes objects of Google Cloud Storage, named as ``gs://bucket/name``.

What is read is copied into the user's cache once. An object is written whole: it appears with its last byte. A bucket
has neither folders nor renaming; "below an address" means that the name begins with the address and a slash.
"""

import base64
import contextlib
import functools
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from qwen35_jax.bucket_errors import BucketError, ObjectNotFoundError, bucket_errors
from qwen35_jax.storage import user_cache

__all__ = [
    "BucketError",
    "ObjectNotFoundError",
    "bucket_errors",
    "check_is_path",
    "check_scheme",
    "file_sizes",
    "filesystem",
    "folder_of",
    "is_address",
    "list_files",
    "local_copy",
    "local_data",
    "read_bytes",
    "remove",
    "upload",
    "write_bytes",
]

logger = logging.getLogger(__name__)

Address = str | PurePath
"""``gs://bucket/name`` as a string or an ``epath.Path``. A ``pathlib.Path`` would drop a slash."""

_SCHEME = "gs://"
_ANY_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|gs:/")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]+")
# Weights in formats that are not read.
_UNREAD = (".bin", ".pt", ".pth", ".gguf")
_REQUEST_SECONDS = 120
_ROOM = 1.05
_STALE_SECONDS = 3600
# The addresses of the copies that this process has used.
_copied_from: dict[Path, str] = {}


def is_address(path: Address) -> bool:
    """Whether this is ``gs://`` and something, rather than a path or a name on the hub."""
    return str(path).startswith(_SCHEME)


def check_scheme(path: Address) -> None:
    """Refuses addresses of other kinds.

    Raises:
      ValueError: it is an address, such as ``s3://bucket``, that nothing here reads.
    """
    if not is_address(path) and (scheme := _ANY_SCHEME.match(str(path))):
        raise ValueError(
            f"{path}: addresses of the kind {scheme[0]} are not supported; give gs://BUCKET/NAME, a path (other "
            "storage can be mounted), or a name on the hub where one is allowed."
        )


def check_is_path(path: Address) -> None:
    """Refuses addresses where something is written that only a path can take.

    Raises:
      ValueError: it is an address.
    """
    if _ANY_SCHEME.match(str(path)):
        raise ValueError(
            f"{path} is an address, and a path on this machine is needed here; write there, and copy the result with "
            "`gcloud storage cp`."
        )


@functools.cache
def filesystem() -> Any:
    """Returns the file system of all buckets: gcsfs, as ``etils.epath``, and so orbax, will find it from then on.

    Raises:
      ValueError: gcsfs is not installed.
    """
    # A TensorFlow that happens to be installed would take the place of gcsfs in epath.
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec
        from gcsfs.core import GCSFileSystem
    except ImportError as err:
        raise ValueError(
            "gs:// addresses need the package gcsfs; install the extra in the checkout: pip install -e '.[gcs]'"
        ) from err
    # Its other class asks one more service, with more rights, for the kind of every bucket.
    fsspec.register_implementation("gcs", GCSFileSystem, clobber=True)
    # tensorstore writes and deletes without the knowledge of a cache of listings.
    fsspec.config.conf.setdefault("gcs", {}).update(use_listings_cache=False, requests_timeout=_REQUEST_SECONDS)
    # They log what they raise too, with tracebacks.
    for name in ("gcsfs", "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return fsspec.filesystem("gcs", finalize_on_close=True)


def _name(address: Address) -> str:
    """Returns ``bucket/name``, as gcsfs wants it."""
    name = str(address).removeprefix(_SCHEME).rstrip("/")
    if not is_address(address) or not _BUCKET.fullmatch(name.partition("/")[0]):
        raise ValueError(f"{address} names no bucket; give gs://BUCKET/NAME.")
    return name


def list_files(address: Address) -> dict[str, dict[str, Any]]:
    """Returns what the bucket knows of the objects below an address, by name; of the object itself, under ``""``."""
    root = _name(address)
    with bucket_errors(address):
        found = filesystem().find(root, detail=True)
    # A name that ends in a slash stands for a folder in the web console and has no content.
    return {name.removeprefix(root).removeprefix("/"): info for name, info in found.items() if not name.endswith("/")}


def file_sizes(address: Address) -> dict[str, int]:
    """Returns the sizes in bytes of the objects below an address, by name."""
    return {name: int(info["size"]) for name, info in list_files(address).items()}


def local_copy(address: Address, names: Collection[str] | None = None) -> Path:
    """Copies an object, or those below an address, into the user's cache, unless their present content is there.

    Changed objects become another copy, so nobody reads a mixture of two versions.

    Args:
      names: which of the objects below the address; by default all but weights in formats that are not read.

    Raises:
      ObjectNotFoundError: there is nothing of that name.
      BucketError: it cannot be read, has names that no files can have, or the disk has no room for it.
    """
    root = _name(address)
    files = list_files(address)
    if "" in files:
        files = {"": files[""]}
    elif names is None:
        files = {name: info for name, info in files.items() if not name.endswith(_UNREAD)}
    else:
        files = {name: files[name] for name in set(names) & files.keys()}
    if not files:
        wanted = f"{address}/{' or '.join(names)}" if names is not None else f"{address}, and nothing below it"
        raise ObjectNotFoundError(f"there is no object {wanted}.")
    _check_names(address, files)
    identity = json.dumps([root, sorted((name, info["generation"]) for name, info in files.items())])
    folder = user_cache("gs") / hashlib.sha256(identity.encode()).hexdigest()[:16]
    target = folder / PurePosixPath(root).name
    missing = {name: info for name, info in files.items() if not (target / name).is_file()}
    if missing:
        size = sum(int(info["size"]) for info in missing.values())
        _check_room(address, folder, size)
        logger.info("copying %s (%s MB) to %s", address, f"{size / 1e6:,.1f}", target)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: _fetch(f"{root}/{name}".rstrip("/"), target / name, missing[name]), missing))
    _copied_from[target] = f"{_SCHEME}{root}"
    return target


def folder_of(file: Path) -> Path | str:
    """Returns the folder where a file lies; of a file of a local copy, the address of the folder in the bucket."""
    for copy in (file, *file.parents):
        if copy in _copied_from:
            parts = file.relative_to(copy).parts
            return "/".join([_copied_from[copy], *parts]).rpartition("/")[0]
    return file.parent


def local_data(address: str) -> str:
    """Copies the objects that an address or a pattern means, and returns the path or the pattern of the copy.

    Raises:
      ObjectNotFoundError: there is no such object.
      BucketError: it cannot be read.
    """
    if not glob.has_magic(address) or list_files(address):
        return str(local_copy(address))
    parts = _name(address).split("/")
    depth = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    folder, pattern = "/".join(parts[:depth]), "/".join(parts[depth:])
    with bucket_errors(address):
        found = filesystem().glob(f"{folder}/{pattern}")
    if not found:
        raise ObjectNotFoundError(f"{address} matches no object.")
    copy = local_copy(f"{_SCHEME}{folder}", [name.removeprefix(f"{folder}/") for name in found])
    return f"{glob.escape(str(copy))}/{pattern}"


def _check_names(address: Address, names: Iterable[str]) -> None:
    """Refuses names that would leave the folder of the copy, or that two objects would share there."""
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for name in filter(None, names):
        path = PurePosixPath(name)
        if str(path) != name or path.is_absolute() or ".." in path.parts or name in folders:
            raise BucketError(f"{address}/{name} has a name that no file can have; rename the object.")


def _check_room(address: Address, folder: Path, size: int) -> None:
    disk = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(disk).free
    if free < size * _ROOM:
        raise BucketError(
            f"{address} has {size / 1e9:.2f} GB, and {disk} has {free / 1e9:.2f} GB of room for a copy; let "
            "XDG_CACHE_HOME name a folder on another disk, or mount the bucket (Cloud Storage FUSE) and give the path.",
            fault=True,
        )


def _fetch(name: str, target: Path, info: Mapping[str, Any]) -> None:
    """Copies one object; the file appears when it is whole and has the content that the listing spoke of."""
    scratch = user_cache("gs") / "unfinished"
    scratch.mkdir(parents=True, exist_ok=True)
    _remove_stale(scratch)
    address, partial = f"{_SCHEME}{name}", scratch / uuid.uuid4().hex
    try:
        with bucket_errors(address):
            filesystem().get_file(name, str(partial))
        if partial.stat().st_size != int(info["size"]) or _crc32c(partial) != info["crc32c"]:
            raise BucketError(
                f"{address} was cut off or changed while it was copied; run the same command again.", fault=True
            )
        changed = datetime.fromisoformat(info["updated"]).timestamp()
        os.utime(partial, (changed, changed))  # So that a copy made anew has not changed.
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _remove_stale(scratch: Path) -> None:
    """Removes what killed processes left unfinished."""
    for path in scratch.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime < time.time() - _STALE_SECONDS:
                path.unlink()


def _crc32c(path: Path) -> str:
    """Returns the checksum of a file as a bucket writes it."""
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum.update(block)
    return base64.b64encode(checksum.digest()).decode()


def read_bytes(address: Address) -> bytes:
    """Returns the content of an object.

    Raises:
      ObjectNotFoundError: there is no such object.
      BucketError: it cannot be read.
    """
    with bucket_errors(address):
        return filesystem().cat_file(_name(address))


def write_bytes(address: Address, content: bytes) -> None:
    """Writes an object, over the one that is there.

    Raises:
      BucketError: it cannot be written.
    """
    with bucket_errors(address):
        filesystem().pipe_file(_name(address), content, consistency="md5")


def upload(file: Path, address: Address) -> None:
    """Writes an object from a file, over the one that is there.

    Raises:
      BucketError: it cannot be written.
    """
    with bucket_errors(address):
        filesystem().put_file(str(file), _name(address), consistency="md5")


def remove(address: Address, *, first: Iterable[str] = ()) -> None:
    """Removes an object, or all below an address. It is no error if there is nothing.

    Args:
      first: names that are removed before the others, in this order: what makes the others valid.

    Raises:
      BucketError: they cannot be removed.
    """
    root, names = f"{_SCHEME}{_name(address)}", list_files(address)
    leading = [name for name in first if name in names]
    for name in leading:
        _remove(f"{root}/{name}")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: _remove(f"{root}/{name}".rstrip("/")), names.keys() - set(leading)))


def _remove(address: str) -> None:
    with contextlib.suppress(ObjectNotFoundError), bucket_errors(address):
        filesystem().rm_file(_name(address))
