"""Folders and files on disk and on the hub, and the errors. Data files: tests/train/data/test_sources.py."""

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from qwen35_jax.hf.hub import HubFile, find_folder, find_hub_file

FILE = HubFile("org/data", "0123456789abcdef0123456789abcdef01234567", "test.jsonl")


def failing(error):
    def fetch(*arguments, **options):
        raise error

    return fetch


def test_a_local_folder_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(AssertionError("asked the hub")))
    assert find_folder(tmp_path) == tmp_path
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=f"is the --workdir of a run; give what it exported, {tmp_path}/export"):
        find_folder(tmp_path)


def test_a_repository_is_downloaded_without_other_formats_of_weights(tmp_path, monkeypatch):
    asked = {}

    def snapshot(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    ignored = {"ignore_patterns": ["*.bin", "*.pt", "*.pth", "*.gguf"]}
    assert find_folder("org/model") == tmp_path
    assert asked == {"name": "org/model", "revision": None} | ignored
    assert find_folder("org/model@v1.0") == tmp_path
    assert asked == {"name": "org/model", "revision": "v1.0"} | ignored


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LocalEntryNotFoundError("Cannot find the snapshot.\nMore words."), r"Cannot find the snapshot\."),
        (ConnectionError(), r"ConnectionError\."),
        (OSError(28, "No space left on device"), r"\[Errno 28\] No space left on device\."),
    ],
)
def test_every_failure_is_one_line_with_its_reason_and_a_remedy(monkeypatch, error, reason):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(error))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing(error))
    with pytest.raises(
        FileNotFoundError, match=rf"^org/model: no such folder, .*: {reason} Give a local folder"
    ) as one:
        find_folder("org/model")
    wanted = rf"^cannot fetch test\.jsonl of org/data@01234567 from the hub: {reason} Use another\.$"
    with pytest.raises(ValueError, match=wanted) as other:
        find_hub_file(FILE, remedy="Use another.")
    assert "\n" not in str(one.value) + str(other.value)


def test_a_name_that_the_hub_cannot_have():
    with pytest.raises(FileNotFoundError, match="no such folder, and not the name of a hub repository either"):
        find_folder("a/b/c")
