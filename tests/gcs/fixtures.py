"""One emulator for a session, and for each test a place of its own in its bucket."""

import asyncio
import types
import uuid
from dataclasses import dataclass

import pytest

from qwen35_jax import gcs
from tests.gcs.emulator import BUCKET, Emulator, Fault, run_emulator


@pytest.fixture(scope="session")
def emulator():
    """The running emulator. The variables that lead there are set in this process; started ones inherit them."""
    with pytest.MonkeyPatch.context() as patch, run_emulator() as running:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        # A file system that an earlier test may have made leads elsewhere.
        type(gcs.filesystem()).clear_instance_cache()
        gcs.filesystem.cache_clear()
        yield running


@dataclass(frozen=True)
class Place:
    """A part of the bucket that one test uses."""

    emulator: Emulator
    address: str

    @property
    def prefix(self) -> str:
        return self.address.removeprefix(f"gs://{BUCKET}/") + "/"

    def put(self, name: str, content: bytes) -> str:
        self.emulator.put(self.prefix + name, content)
        return f"{self.address}/{name}"

    def get(self, name: str) -> bytes:
        return self.emulator.get(self.prefix + name)

    def delete(self, name: str) -> None:
        self.emulator.delete(self.prefix + name)

    def sizes(self) -> dict[str, int]:
        return self.emulator.sizes(self.prefix)

    def fail(self, *faults: Fault) -> None:
        """Makes requests fail until the end of the test."""
        self.emulator.faults[:] = faults


@pytest.fixture
def place(emulator, tmp_path, monkeypatch):
    """An empty part of the bucket, a cache that is empty too, and retries that do not wait."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pause = asyncio.sleep
    monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=lambda seconds: pause(0)))
    yield Place(emulator, f"gs://{BUCKET}/{uuid.uuid4().hex[:8]}")
    emulator.faults.clear()
