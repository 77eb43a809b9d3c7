"""Finds the folders and files that a user names, on disk, in a bucket (``gs://``) or on the Hugging Face hub.

This serves models, training data and the data of benchmarks. What the hub's cache holds needs no network. Objects of a
bucket are copied to this machine; the copy is used again until the bucket holds something else.
"""

import glob
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from qwen35_jax import gcs
from qwen35_jax.hf.splits import ENDINGS, choose_files

logger = logging.getLogger(__name__)

_CACHED = re.compile(r".*/models--(?P<org>[^/]+)--(?P<name>[^/]+)/snapshots/(?P<revision>[^/]+)")
_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
HUB_FAILURES = (OSError, HFValidationError, HTTPError)
"""What the hub's functions raise: for a wrong name, no network, no access, a full disk."""
# Weights in formats that are not read.
_IGNORED = ["*.bin", "*.pt", "*.pth", "*.gguf"]
_CARD = "README.md"
# A folder of a model, an adapter or a tokenizer has one of these.
_MARKS = ("config.json", "adapter_config.json", "tokenizer.json")


class HubError(OSError):
    """The hub did not give what it was asked for. The message is the reason, in one line."""


@dataclass(frozen=True)
class HubFile:
    """One file of a hub dataset at a pinned revision."""

    repo: str
    revision: str
    filename: str


def find_folder(path: str | Path) -> Path:
    """Returns the local folder of a model or an adapter; one of a bucket or the hub is downloaded if need be.

    Args:
      path: a folder, ``gs://bucket/folder``, ``org/name`` or ``org/name@revision``.

    Raises:
      FileNotFoundError: there is no such folder, and no such repository can be reached.
      BucketError: the bucket cannot be read.
      ValueError: it is an address of another kind, or the directory of a run.
    """
    gcs.check_scheme(path)
    if gcs.is_address(path):
        return _folder_of_bucket(str(path).rstrip("/"))
    folder = Path(path)
    if folder.is_dir():
        if (folder / "checkpoints").is_dir() and (folder / "metrics.jsonl").is_file():
            raise ValueError(f"{path} is the --workdir of a run; give what it exported, {folder / 'export'}.")
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


def _folder_of_bucket(address: str) -> Path:
    names = gcs.list_files(address)
    if not any(name in names for name in _MARKS):
        raise gcs.ObjectNotFoundError(f"{address} holds none of {', '.join(_MARKS)}; give the folder of a checkpoint.")
    if any(name.startswith("checkpoints/") for name in names):
        raise ValueError(f"{address} is the --workdir of a run; give what it exported, {address}/export.")
    return gcs.local_copy(address)


def find_file(path: str | Path) -> Path:
    """Returns a file's path, or that of the local copy of an object. Whether there is a local file is not checked.

    Raises:
      BucketError: there is no such object, or it cannot be read.
      ValueError: it is an address of another kind.
    """
    gcs.check_scheme(path)
    if not gcs.is_address(path):
        return Path(path)
    if "" not in gcs.list_files(path):
        raise gcs.ObjectNotFoundError(f"{path}: there is no such object in the bucket.")
    return gcs.local_copy(path)


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
    return (str(path), None) if gcs.is_address(path) or Path(path).exists() else (name, revision or None)


def find_files(
    path: str, *, split: str | None = None, subset: str | None = None, hub_files: str | None = None
) -> list[Path]:
    """Finds the files that a file name, a glob, a folder or a hub dataset id means, sorted by name.

    Args:
      path: ``file``, ``glob``, ``folder`` (the three also in a bucket, after ``gs://``), or ``org/name[@revision]``.
        What exists on disk goes before the hub.
      split, subset, hub_files: which files of a folder or dataset (`qwen35_jax.hf.splits`).

    Raises:
      ValueError: there is no such file, the hub does not give it, or it is not clear which files are meant.
      BucketError: the bucket cannot be read.
    """
    gcs.check_scheme(path)
    choice = {"split": split, "subset": subset, "pattern": hub_files}
    local = Path(path).expanduser()
    if gcs.is_address(path):
        objects = gcs.list_files(path)
        if objects and "" not in objects:
            return _data_of_bucket(path, list(objects), choice)
        local = _copied_files(path)
    if local.is_dir():
        return _files_of_folder(path, local, choice)
    if local.is_file() or glob.has_magic(path):
        if given := [name for name, value in (("split", split), ("subset", subset)) if value is not None]:
            raise ValueError(
                f"--data.{given[0]} chooses among the files of a folder or hub dataset, and {path!r} names its files."
            )
        files = sorted(Path(name) for name in glob.glob(str(local), recursive=True) if Path(name).is_file())
        if not local.is_file() and not files:
            raise ValueError(f"data.path={path!r} matches no file.")
        return [local] if local.is_file() else files
    hub_id = _HUB_ID.fullmatch(path)
    if hub_id is None or path.endswith(ENDINGS):
        raise ValueError(
            f"data.path={path!r} does not exist; give a file of rows ({', '.join(ENDINGS)}), a glob, a folder, or the "
            "id of a hub dataset (org/name)."
        )
    return _files_of_dataset(path, hub_id["name"], hub_id["revision"], choice)


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


def _files_of_folder(path: str, folder: Path, choice: dict[str, str | None]) -> list[Path]:
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return [folder / name for name in _choose(path, names, _configs(folder), choice)]


def _data_of_bucket(path: str, names: list[str], choice: dict[str, str | None]) -> list[Path]:
    configs = _configs(gcs.local_copy(path, [_CARD])) if _CARD in names else []
    chosen = _choose(path, names, configs, choice)
    folder = gcs.local_copy(path, chosen)
    return [folder / name for name in chosen]


def _copied_files(path: str) -> Path:
    """Returns the copy of an object, or a pattern for the copies of those that a pattern of the bucket means."""
    try:
        return Path(gcs.local_data(path))
    except gcs.ObjectNotFoundError as err:
        raise ValueError(f"data.path={path!r} does not exist: {err}") from err


def _choose(path: str, names: list[str], configs: list[dict[str, Any]], choice: dict[str, str | None]) -> list[str]:
    try:
        return choose_files(names, configs, **choice)
    except ValueError as err:
        saved = any(name.endswith(".arrow") for name in names)
        remedy = "; it was made by save_to_disk: write it anew with to_parquet" if saved else ""
        raise ValueError(
            f"data.path={path!r} is a folder of which the files to read are not clear: {err}{remedy}."
        ) from err


def _files_of_dataset(path: str, name: str, revision: str | None, choice: dict[str, str | None]) -> list[Path]:
    def fetch(patterns: list[str]) -> Path:
        snapshot = huggingface_hub.snapshot_download
        return _download(snapshot, name, repo_type="dataset", revision=revision, allow_patterns=patterns)

    try:
        card = fetch([_CARD])
        chosen = choose_files(_list_files(name, revision, card), _configs(card), **choice)
        # Names are patterns there; brackets in them are meant as they are.
        folder = fetch([glob.escape(each) for each in chosen])
    except HubError as err:
        raise ValueError(
            f"data.path={path!r} is no local file, and the hub dataset of that name is not at hand: {err} "
            "Check the name and the network, or download the file and give its path."
        ) from err
    except ValueError as err:
        raise ValueError(f"data.path={path!r} is a dataset of which the files to read are not clear: {err}.") from err
    if missing := [each for each in chosen if not (folder / each).is_file()]:
        raise ValueError(f"the hub did not give {missing[0]} of {path!r}; try again.")
    return [folder / each for each in chosen]


def _list_files(name: str, revision: str | None, snapshot: Path) -> list[str]:
    """Lists the files of a hub dataset; without a network, those in the hub's cache."""
    try:
        siblings = huggingface_hub.dataset_info(name, revision=revision, timeout=30).siblings
        return [file.rfilename for file in siblings or ()]
    except HUB_FAILURES as err:
        logger.warning("the hub cannot be asked for the files of %s (%s): those in its cache are read", name, err)
        return [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()]


def _configs(folder: Path) -> list[dict[str, Any]]:
    """Reads the configurations that the card of a dataset lists; none where there is no card that can be read."""
    card = folder / _CARD
    if not card.is_file():
        return []
    try:
        head = re.match(r"\s*---\r?\n(.*?)\r?\n---", card.read_text(encoding="utf-8"), re.DOTALL)
        configs = (yaml.safe_load(head[1]) or {}).get("configs") if head else None
    except (OSError, ValueError, yaml.YAMLError, AttributeError):
        return []
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


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
    """Returns why the hub cannot be reached, or else the first line of an error, as a sentence."""
    reason = (str(err).strip() or type(err).__name__).splitlines()[0]
    cause: BaseException | None = err
    while cause is not None:
        if isinstance(cause, HTTPError) and not isinstance(cause, HfHubHTTPError):
            reason = f"the hub cannot be reached ({str(cause) or type(cause).__name__})"
        cause = cause.__cause__ or cause.__context__
    return reason if reason.endswith(".") else f"{reason}."
