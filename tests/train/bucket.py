"""The directory of a run in a bucket, as tests look at it."""

from tests.train.launching import has_row, timeless, wait_until


class BucketRun:
    """The directory ``run`` of a place in a bucket, with the base checkpoint and the data beside it."""

    def __init__(self, place, inputs, tmp_path):
        self.place, self.workdir, self._tmp_path = place, f"{place.address}/run", tmp_path
        for path in (*(inputs / "base").rglob("*"), inputs / "train.jsonl"):
            if path.is_file():
                place.put(path.relative_to(inputs).as_posix(), path.read_bytes())
        self.inputs = ("--model.path", f"{place.address}/base", "--data.path", f"{place.address}/train.jsonl")
        self.cache = tmp_path / "cache" / "qwen35-jax" / "runs"

    def names(self):
        return {name.removeprefix("run/") for name in self.place.sizes() if name.startswith("run/")}

    def finished_steps(self):
        parts = (name.split("/") for name in self.names())
        return sorted(int(part[1]) for part in parts if len(part) == 3 and part[2] == "commit_success.txt")

    def rows(self):
        """Returns the rows of metrics in the bucket without what depends on the clock."""
        (self._tmp_path / "metrics.jsonl").write_bytes(self.place.get("run/metrics.jsonl"))
        return timeless(self._tmp_path)

    def export(self):
        names = {name for name in self.names() if name.startswith("export/")}
        return {name.removeprefix("export/"): self.place.get(f"run/{name}") for name in names}

    def wait_for_row(self, processes, step):
        """Returns as soon as the row of a step is written on this disk; a save before it may still be under way."""
        wait_until(lambda: any(has_row(path, step) for path in self.cache.glob("*/run/metrics.jsonl")), processes)

    def wait_for_save(self, processes, step):
        """Returns as soon as the checkpoint of a step, or of a later one, is whole in the bucket."""
        wait_until(lambda: any(saved >= step for saved in self.finished_steps()), processes)


def local_export(workdir, inputs, address):
    """Returns the files of an export on a disk; two of them name base and data, here as if these had an address."""
    folder = workdir / "export"
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    naming = ("README.md", "adapter_config.json")
    return files | {name: files[name].replace(str(inputs).encode(), address.encode()) for name in naming}
