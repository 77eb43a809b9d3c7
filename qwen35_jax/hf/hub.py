"""From what a user names to what is on disk: folders and files, local or from the Hugging Face hub."""

import glob
import re
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

ENDINGS = (".jsonl", ".parquet")
_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")


def find_folder(path: str | Path) -> Path:
    """Returns a local folder, or the local copy of a hub repository, downloading it if need be.

    Raises:
      FileNotFoundError: there is no such folder, and no such repository can be reached.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    try:
        return Path(huggingface_hub.snapshot_download(str(path), ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf"]))
    except HFValidationError as err:
        raise FileNotFoundError(f"{path}: no such folder, and not the name of a hub repository either.") from err
    except (LocalEntryNotFoundError, HfHubHTTPError) as err:
        reason = str(err).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{path}: no such folder, and the hub repository of that name is not at hand ({reason}). "
            "Give a local folder, or check the name and the network."
        ) from err


def find_files(path: str, *, hub_files: str = "*train*") -> list[Path]:
    """Turns a file name, a glob or a hub dataset id into the files to read, sorted by name.

    A hub dataset's files are downloaded into the hub's cache; what is there already needs no network.

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
    return _download(path, hub_id["name"], hub_id["revision"], hub_files)


def _download(path: str, name: str, revision: str | None, hub_files: str) -> list[Path]:
    patterns = [hub_files + ending for ending in ENDINGS]
    try:
        folder = Path(
            huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as err:
        reason = str(err).strip().splitlines()[0]
        raise ValueError(
            f"data.path={path!r} is no local file, and as a dataset on the hub it cannot be read: {reason} "
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
