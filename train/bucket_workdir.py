"""A run directory in a bucket: orbax writes the checkpoints there, everything else is written here first and copied."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import PurePosixPath

import jax

from qwen35_jax import gcs
from qwen35_jax.distributed import raise_together
from qwen35_jax.publish import Mirror, publish_folder
from qwen35_jax.runs import CHECKPOINTS, EXPORT, RECORD, Folder, bucket_folder
from qwen35_jax.storage import user_cache
from train.bucket_lock import BucketLock


class BucketWorkdir:
    """A run directory ``gs://bucket/name``.

    The bucket alone decides what the run is: what an earlier process left on this disk is removed at the start, and
    what this one wrote at the end. A push comes before each checkpoint, so that a checkpoint is never ahead of the
    metrics beside it.
    """

    def __init__(self, address: str):
        self._address = address.rstrip("/")
        self.checkpoints: Folder = bucket_folder(self._address) / CHECKPOINTS
        # Each process of a host has a folder of its own. Trackers call the run by the last part of its path.
        key = hashlib.sha256(f"{self._address}\0{jax.process_index()}".encode()).hexdigest()[:16]
        self.local = user_cache("runs") / key / PurePosixPath(self._address).name
        self._lock = BucketLock(self._address)
        # An export is published as a whole; wandb sends its folder itself.
        leave_out = (EXPORT, f"{EXPORT}.new", f"{EXPORT}.old", "wandb")
        self._mirror = Mirror(self.local, self._address, leave_out=leave_out)

    def __str__(self) -> str:
        return self._address

    def check(self) -> None:
        names = {name for name in self.names() if not name.startswith(".")}
        # There are no empty folders, so a run that has saved nothing yet is known by its record.
        if names and CHECKPOINTS not in names and not (RECORD in names and self._has_record()):
            raise ValueError(f"{self} is not empty and holds no training run; choose another --workdir.")

    def _has_record(self) -> bool:
        with contextlib.suppress(ValueError):
            return "recipe" in json.loads(gcs.read_bytes(f"{self._address}/{RECORD}"))
        return False

    def names(self) -> set[str]:
        return {name.split("/")[0] for name in gcs.list_files(self._address)}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            with raise_together():
                if jax.process_index() == 0:
                    held.enter_context(self._lock.held())
            held.callback(shutil.rmtree, self.local.parent, ignore_errors=True)
            with raise_together():
                self._fetch()
            yield

    def _fetch(self) -> None:
        """Takes up the record, the metrics and what else lies directly in the directory."""
        shutil.rmtree(self.local.parent, ignore_errors=True)
        self.local.mkdir(parents=True)
        for name in gcs.list_files(self._address):
            if name and "/" not in name and not name.startswith("."):
                (self.local / name).write_bytes(gcs.read_bytes(f"{self._address}/{name}"))

    def push(self) -> None:
        if jax.process_index() == 0:
            self._lock.check()
            self._mirror.push()

    def publish_export(self) -> None:
        with raise_together():
            if jax.process_index() == 0:
                self._lock.check()
                publish_folder(self.local / EXPORT, f"{self._address}/{EXPORT}")
