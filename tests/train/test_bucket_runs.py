"""A run whose directory lies in a bucket trains, resumes and exports as one on a disk does."""

import json

import pytest

from tests.train.launching import LORA, timeless


class Bucket:
    """The directory ``run`` in a bucket, base checkpoint and data beside it."""

    def __init__(self, place, inputs, tmp_path):
        self.place, self._copies, self.workdir = place, tmp_path / "copies", f"{place.address}/run"
        for path in (*(inputs / "base").rglob("*"), inputs / "train.jsonl"):
            if path.is_file():
                place.put(path.relative_to(inputs).as_posix(), path.read_bytes())
        self.inputs = ("--model.path", f"{place.address}/base", "--data.path", f"{place.address}/train.jsonl")
        self.cache = tmp_path / "cache" / "qwen35-jax" / "runs"

    def names(self):
        return {name.removeprefix("run/") for name in self.place.sizes() if name.startswith("run/")}

    def rows(self):
        self._copies.mkdir(exist_ok=True)
        (self._copies / "metrics.jsonl").write_bytes(self.place.get("run/metrics.jsonl"))
        return timeless(self._copies)

    def export(self):
        return {
            name.removeprefix("export/"): self.place.get(f"run/{name}")
            for name in self.names()
            if name.startswith("export/")
        }


@pytest.fixture
def bucket(place, inputs, tmp_path):
    return Bucket(place, inputs, tmp_path)


def local_export(workdir, inputs, address):
    """Returns the files of an export on a disk; two of them name base and data, here as if these had an address."""
    folder = workdir / "export"
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    naming = ("README.md", "adapter_config.json")
    return files | {name: files[name].replace(str(inputs).encode(), address.encode()) for name in naming}


def test_a_run_in_a_bucket_equals_one_on_a_disk(command, whole_run, bucket, inputs):
    before = len(bucket.place.emulator.requests)
    out = command.run(bucket.workdir, *LORA, *bucket.inputs)
    assert f"exported to {bucket.workdir}/export" in out
    assert bucket.rows() == timeless(whole_run[0])
    ours, theirs = bucket.export(), local_export(whole_run[0], inputs, bucket.place.address)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == set()
    record = json.loads(bucket.place.get("run/config.json"))
    assert record["outcome"] == json.loads((whole_run[0] / "config.json").read_text())["outcome"]
    steps = {name.split("/")[1] for name in bucket.names() if name.startswith("checkpoints/")}
    assert steps == {path.name for path in (whole_run[0] / "checkpoints").iterdir()}
    # The lock is given back, and nothing stays on this disk.
    assert ".lock" not in bucket.names() and not list(bucket.cache.glob("*/*"))

    # The rows of a step are in the bucket before anything of its checkpoint.
    writes = [
        name.partition("/run/")[2] for method, _, name in bucket.place.emulator.requests[before:] if method == "POST"
    ]
    for step in (3, 6, 9):
        first = next(i for i, name in enumerate(writes) if name.startswith(f"checkpoints/{step}/"))
        last = max(i for i, name in enumerate(writes[:first]) if name == "metrics.jsonl")
        assert not any(name.startswith("checkpoints/") for name in writes[last:first])
