"""Uploads an exported folder to the Hugging Face hub. Nothing here happens unless a user asks for it by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from qwen35_jax.hf.hub import HUB_FAILURES, reason_of


def prepare_repository(name: str, *, public: bool) -> None:
    """Makes the repository if it is absent, before anything slow is done for it.

    Raises:
      ValueError: the hub does not allow it, or the repository is public and ``public`` is false.
    """
    api = HfApi()
    _call(name, api.create_repo, name, private=not public, exist_ok=True)
    info = _call(name, api.repo_info, name)
    if not (info.private or public):
        raise ValueError(f"{name} exists on the hub and is public; give --public to upload to it, or another name.")


def upload(folder: Path, name: str, *, message: str) -> str:
    """Uploads the files of a folder as one commit, and returns its address.

    Raises:
      ValueError: the hub does not take them.
    """
    commit = _call(name, HfApi().upload_folder, repo_id=name, folder_path=folder, commit_message=message)
    return str(commit)


def _call(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except HUB_FAILURES as err:
        raise ValueError(
            f"cannot push to {name}: {reason_of(err)} Log in with `hf auth login`, and check the name and the network."
        ) from err
