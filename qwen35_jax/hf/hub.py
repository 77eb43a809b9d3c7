"""Finds the folders and files that a user names, on disk or on the Hugging Face hub.

This serves models, training data and the data of benchmarks. What the hub's cache holds needs no network.
"""

import glob
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError, HTTPError

ENDINGS = (".jsonl", ".parquet")
_CACHED = re.compile(r".*/models--(?P<org>[^/]+)--(?P<name>[^/]+)/snapshots/(?P<revision>[^/]+)")
_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
HUB_FAILURES = (OSError, HFValidationError, HTTPError)
"""What the hub's functions raise: for a wrong name, no network, no access, a full disk."""
# Weights in formats that are not read.
_IGNORED = ["*.bin", "*.pt", "*.pth", "*.gguf"]


class HubError(OSError):
    """The hub did not give what it was asked for. The message is the reason, in one line."""


@dataclass(frozen=True)
class HubFile:
    """One file of a hub dataset at a pinned revision."""

    repo: str
    revision: str
    filename: str


def find_folder(path: str | Path) -> Path:
    """Returns a local folder, or the local copy of a hub repository, downloading it if need be.

    Args:
      path: a folder, ``org/name`` or ``org/name@revision``.

    Raises:
      FileNotFoundError: there is no such folder, and no such repository can be reached.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    name, _, revision = str(path).partition("@")
    try:
        return _download(huggingface_hub.snapshot_download, name, revision=revision or None, ignore_patterns=_IGNORED)
    except HubError as err:
        if isinstance(err.__cause__, HFValidationError):
            raise FileNotFoundError(f"{path}: no such folder, and not the name of a hub repository either.") from err
        raise FileNotFoundError(
            f"{path}: no such folder, and the hub repository of that name is not at hand: {err} "
            "Give a local folder, or check the name and the network."
        ) from err


def public_name(path: str | Path, folder: Path | None = None) -> tuple[str, str | None]:
    """Returns how others find a model: hub id and revision, or the path as it was given, without a revision.

    Args:
      path: what the user gave.
      folder: where ``find_folder`` found it. A folder of the hub's cache tells the exact revision.
    """
    cached = _CACHED.fullmatch(str(folder or path))
    if cached is not None:
        return f"{cached['org']}/{cached['name']}", cached["revision"]
    name, _, revision = str(path).partition("@")
    return (str(path), None) if Path(path).exists() else (name, revision or None)


def find_files(path: str, *, hub_files: str = "*train*") -> list[Path]:
    """Finds the files that a file name, a glob or a hub dataset id means, sorted by name.

    Args:
      path: ``file``, ``glob`` or ``org/name[@revision]``. What exists on disk goes before the hub.
      hub_files: pattern for a hub file's path without the ending.

    Raises:
      ValueError: there is no such file, or the hub does not give it.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return [local]
    if local.is_dir():
        raise ValueError(f"data.path={path!r} is a folder; name its files with a glob such as '{local}/*.jsonl'.")
    if glob.has_magic(path):
        files = sorted(Path(name) for name in glob.glob(str(local), recursive=True) if Path(name).is_file())
        if not files:
            raise ValueError(f"data.path={path!r} matches no file.")
        return files
    hub_id = _HUB_ID.fullmatch(path)
    if hub_id is None or path.endswith(ENDINGS):
        raise ValueError(
            f"data.path={path!r} does not exist; give a JSONL or Parquet file, a glob, or a hub dataset id (org/name)."
        )
    return _find_hub_files(path, hub_id["name"], hub_id["revision"], hub_files)


def find_hub_file(file: HubFile, *, remedy: str) -> Path:
    """Returns the local copy of one file of a hub dataset, downloading it if need be.

    Args:
      remedy: what the user can do where the hub cannot be reached, as the end of the message.

    Raises:
      ValueError: the hub does not give the file.
    """
    try:
        return _download(
            huggingface_hub.hf_hub_download, file.repo, file.filename, repo_type="dataset", revision=file.revision
        )
    except HubError as err:
        place = f"{file.repo}@{file.revision[:8]}"
        raise ValueError(f"cannot fetch {file.filename} of {place} from the hub: {err} {remedy}") from err


def _find_hub_files(path: str, name: str, revision: str | None, hub_files: str) -> list[Path]:
    patterns = [hub_files + ending for ending in ENDINGS]
    fetch = huggingface_hub.snapshot_download
    try:
        folder = _download(fetch, name, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except HubError as err:
        raise ValueError(
            f"data.path={path!r} is no local file, and the hub dataset of that name is not at hand: {err} "
            "Check the name and the network, or download the file and give its path."
        ) from err
    # The cached snapshot may also hold files of an earlier download with another pattern.
    found = (file for file in folder.rglob("*") if file.is_file())
    files = sorted(file for file in found if any(fnmatch(file.relative_to(folder).as_posix(), p) for p in patterns))
    if not files:
        raise ValueError(
            f"the hub dataset {name!r} has no .jsonl or .parquet file that matches data.hub_files={hub_files!r}; "
            "look at its files on the hub and set data.hub_files."
        )
    return files


def _download(fetch: Callable[..., str], *arguments: str, **options: Any) -> Path:
    """Calls one of the hub's functions that return a local path.

    Raises:
      HubError: it failed for whatever reason: a wrong name, no network, no access, a full disk.
    """
    try:
        return Path(fetch(*arguments, **options))
    except HUB_FAILURES as err:
        raise HubError(reason_of(err)) from err


def reason_of(err: Exception) -> str:
    """Returns the first line of an error as a sentence."""
    reason = (str(err).strip() or type(err).__name__).splitlines()[0]
    return reason if reason.endswith(".") else f"{reason}."
