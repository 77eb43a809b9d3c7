"""One run at a time in a directory: a file that names the process which works there.

The file is made with O_EXCL, which mounted buckets have too. A process that was killed leaves its file behind. On the
same host the next start sees that the process is gone and takes over at once. Of another host it sees only how long ago
the file was touched, which its owner does every half minute.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qwen35_jax.liveness import call_at_end

LOCK = ".lock"
HEARTBEAT_SECONDS, STALE_SECONDS = 30.0, 600.0
# How long the file of a process that is about to write it may be empty.
_EMPTY_SECONDS = 10.0

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def lock_directory(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a directory.

    Raises:
      ValueError: another run works there; the message says which.
    """
    path = folder / LOCK
    own = describe_self()
    while not _make(path, own):
        _take_over(path)
    with keep(partial(_touch_until, path), partial(path.unlink, missing_ok=True)):
        yield


@contextlib.contextmanager
def keep(renew_until: Callable[[threading.Event], None], release: Callable[[], None]) -> Iterator[None]:
    """Renews a lock during the block, in a thread, and releases it after, or where another process ends this one."""
    stop = threading.Event()
    beat = threading.Thread(target=renew_until, args=(stop,), daemon=True)
    beat.start()
    forget = call_at_end(release)
    try:
        yield
    finally:
        forget()
        stop.set()
        beat.join()
        release()


def describe_self() -> dict[str, Any]:
    """Returns what names this process in a lock."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "began": _began(pid), "since": time.strftime("%F %T %z")}


def _make(path: Path, content: dict[str, Any]) -> bool:
    """Makes the file; returns False if there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file)
    return True


def _take_over(path: Path) -> None:
    """Removes the file of a process that is gone. One process at a time may do so.

    Raises:
      ValueError: its owner is alive, or may be.
    """
    taking = path.with_name(f"{path.name}.takeover")
    if not _make(taking, {}):
        if _age(taking) > _EMPTY_SECONDS:  # left by a kill in between
            taking.unlink(missing_ok=True)
        time.sleep(0.05)
        return
    try:
        owner = _read(path)
        if owner is None:
            time.sleep(0.05)
            return
        if not _is_gone(owner, path):
            raise ValueError(
                f"{path.parent} is in use by process {owner.get('pid')} on {owner.get('host')} since "
                f"{owner.get('since')}; wait for its end or stop it, or give another --workdir. If that machine is "
                f"gone, {path} may be removed; it counts for {STALE_SECONDS / 60:.0f} minutes."
            )
        logger.info("%s: process %s on %s is gone, so this one takes over", path.parent, owner["pid"], owner["host"])
        path.unlink(missing_ok=True)
    finally:
        taking.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """Returns whom the file names; None if it is gone, or not yet written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        # Cut short by a full disk or a kill, if it stays so.
        return {"host": None, "pid": None} if _age(path) > _EMPTY_SECONDS else None


def _is_gone(owner: dict[str, Any], path: Path) -> bool:
    if owner["host"] is None:
        return True
    here = runs_here(owner)
    return _age(path) > STALE_SECONDS if here is None else not here


def runs_here(owner: Mapping[str, Any]) -> bool | None:
    """Whether the process that a lock names runs on this host; None if it belongs to another host."""
    if owner["host"] != socket.gethostname():
        return None
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # Another process may have got the number since.
    return owner.get("began") == _began(owner["pid"])


def _began(pid: int) -> str | None:
    """Returns when a process began, in the kernel's own ticks; None where that cannot be known.

    It is None too for a process that has ended and whose parent did not ask for its exit code.
    """
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else others[18]
    except (OSError, IndexError):
        return None


def _age(path: Path) -> float:
    """Returns the seconds since a file was touched; 0 if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _touch_until(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
