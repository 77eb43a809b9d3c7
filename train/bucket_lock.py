"""One run at a time in a bucket: an object that names the process which works there.

The object is made on condition that there is none, so of several starts one gets it. Its owner renews it every few
seconds. A process that was killed leaves its object behind. On the same host the next start sees that the process is
gone and takes over at once. Of another host it watches whether the object is renewed, so that no clocks are compared.
"""

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from qwen35_jax import gcs
from train.lock import LOCK, describe_self, keep, runs_here

BEAT_SECONDS, LEASE_SECONDS = 5.0, 20.0
"""How often a lock is renewed, and after how long without it the lock is nobody's."""

logger = logging.getLogger(__name__)


class _Version(NamedTuple):
    """What a renewal changes."""

    generation: str
    metageneration: str
    beat: str | None


class _Found(NamedTuple):
    owner: dict[str, Any]
    version: _Version


class BucketLock:
    """The lock of one run directory."""

    def __init__(self, workdir: str):
        self._workdir, self._address = workdir, f"{workdir}/{LOCK}"
        self._bucket, _, self._key = self._address.removeprefix("gs://").partition("/")
        # Whether the object is ours, even where the answer to its making was lost and it was made again.
        self._token = uuid.uuid4().hex
        self._generation = "0"
        self.is_lost = False
        """Whether the run must stop, since the lock is not its own any more."""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs out.

        Raises:
          ValueError: another run works there; the message says which.
          BucketError: the bucket does not allow it.
        """
        self._take()
        with keep(self._renew_until, self._release):
            yield

    def _release(self) -> None:
        with contextlib.suppress(OSError):  # It may be another's by now; if not, it is soon nobody's.
            self._ask("DELETE", ifGenerationMatch=self._generation)

    def check(self) -> None:
        """Call it before anything is written.

        Raises:
          BucketError: another run took the directory over, as it may after this process was stopped for long.
        """
        if self.is_lost:
            raise gcs.BucketError(
                f"{self._workdir} belongs to another run now, or {self._address} was removed, while this run did not "
                "renew it; so this run stops before it writes again."
            )

    def _take(self) -> None:
        seen, since = None, time.monotonic()
        while True:
            made = self._make()
            found = self._find()
            if found is None and made:
                raise gcs.BucketError(
                    f"{self._address} is missing right after it was written: the bucket loses writes.", fault=True
                )
            if found is None:
                continue
            if found.owner.get("token") == self._token:
                self._generation = found.version.generation
                return
            here = runs_here(found.owner)
            renewed = seen is not None and seen != found.version
            if here or (here is None and renewed):
                raise ValueError(
                    f"{self._workdir} is in use by process {found.owner['pid']} on {found.owner['host']} since "
                    f"{found.owner.get('since')}; wait for its end or stop it, or give another --workdir."
                )
            if here is False or time.monotonic() - since > LEASE_SECONDS:
                self._remove(found)
                continue
            seen = found.version
            time.sleep(min(1.0, LEASE_SECONDS / 10))

    def _make(self) -> bool:
        """Makes the object; returns False if there is one."""
        content = json.dumps(describe_self() | {"token": self._token}).encode()
        try:
            with gcs.bucket_errors(self._address):
                gcs.filesystem().pipe_file(f"{self._bucket}/{self._key}", content, mode="create")
        except FileExistsError:
            return False
        return True

    def _find(self) -> _Found | None:
        """Returns whose it is; None if it is gone. Should it change in between, the version is the older one."""
        try:
            with gcs.bucket_errors(self._address):
                info = gcs.filesystem().info(f"{self._bucket}/{self._key}")
            owner = json.loads(gcs.read_bytes(self._address))
            if not isinstance(owner, dict) or not {"host", "pid"} <= owner.keys():
                raise ValueError("it names no process")
        except gcs.ObjectNotFoundError:
            return None
        except ValueError as err:
            raise ValueError(f"{self._address} is not the lock of a run ({err}); remove it.") from err
        beat = (info.get("metadata") or {}).get("beat")
        return _Found(owner, _Version(str(info["generation"]), str(info["metageneration"]), beat))

    def _remove(self, found: _Found) -> None:
        """Removes the lock of a run that is gone, unless it was renewed or another start was quicker."""
        owner, version = found
        logger.info("%s: process %s on %s is gone, so this one takes over", self._workdir, owner["pid"], owner["host"])
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            self._ask("DELETE", ifGenerationMatch=version.generation, ifMetagenerationMatch=version.metageneration)

    def _renew_until(self, stop: threading.Event) -> None:
        beats = 0
        while not stop.wait(BEAT_SECONDS):
            beats += 1
            try:
                answer = self._ask(
                    "PATCH",
                    json_out=True,
                    json={"metadata": {"beat": str(beats)}},
                    ifGenerationMatch=self._generation,
                )
                self._generation = answer["generation"]
            except (FileNotFoundError, FileExistsError):
                self.is_lost = not self._is_ours()
                if self.is_lost:
                    return
            except OSError as err:
                logger.warning("%s was not renewed: %s", self._address, err)

    def _is_ours(self) -> bool:
        """Whether the lock is ours after all: the answer to a renewal was lost, and the renewal was tried again."""
        with contextlib.suppress(OSError, ValueError):
            found = self._find()
            if found is None or found.owner.get("token") != self._token:
                return False
            self._generation = found.version.generation
        return True  # If the bucket cannot say, the next renewal asks again.

    def _ask(self, method: str, **conditions: Any) -> Any:
        with gcs.bucket_errors(self._address):
            return gcs.filesystem().call(method, "b/{}/o/{}", self._bucket, self._key, **conditions)
