"""Which code made a result."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_HERE = Path(__file__).parents[1]


def code() -> dict[str, Any]:
    """Returns the ``version`` of the package, and the ``commit`` of the checkout that this file lies in.

    The commit is None outside a checkout. Changes that are not committed do not show in it.
    """
    return {"version": version("qwen35_jax"), "commit": commit_of(_HERE)}


def commit_of(checkout: Path) -> str | None:
    """Returns the commit that is checked out, read from Git's files; None where these do not tell it."""
    try:
        git = checkout / ".git"
        if git.is_file():  # of a further work tree, which has its own folder elsewhere
            git = checkout / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if head.startswith("ref:"):
            head = _branch(git, head.removeprefix("ref:").strip())
    except (OSError, UnicodeDecodeError):
        return None
    return head if _COMMIT.fullmatch(head) else None


def _branch(git: Path, name: str) -> str:
    """Returns what a branch points to; empty where it has no commit."""
    shared = git / "commondir"
    folder = git / shared.read_text(encoding="utf-8").strip() if shared.is_file() else git
    if (folder / name).is_file():
        return (folder / name).read_text(encoding="utf-8").strip()
    packed = (folder / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
