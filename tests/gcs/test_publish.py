"""What is published is whole or cannot be loaded; a mirror holds what it was given; losses are noticed."""

import json
import os

import pytest

from qwen35_jax import gcs
from qwen35_jax.publish import Mirror, check_new, check_written, folder_for, publish_folder
from tests.gcs.emulator import Fault

MARKS = ("model.safetensors.index.json", "adapter_config.json", "config.json")
OLD = {"config.json": b"old", "model.safetensors": b"old weights", "old_only/vocab.json": b"old"}
NEW = {
    "config.json": b"new!",
    "model.safetensors.index.json": b"new!",
    "model-1.safetensors": b"new weights",
    "mtp/adapter_config.json": b"new!",
}


def make_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def test_a_folder_takes_the_place_of_another(place, tmp_path):
    for files in (OLD, NEW):
        publish_folder(make_folder(tmp_path / files["config.json"].decode(), files), f"{place.address}/export")
    assert {name: place.get(name) for name in place.sizes()} == {f"export/{name}": NEW[name] for name in NEW}


def writes_of_publishing(place, folder):
    """The writing requests of a whole publication, in order."""
    place.emulator.requests.clear()
    publish_folder(folder, f"{place.address}/export")
    return [request for request in place.emulator.requests if request[0] != "GET"]


def test_wherever_it_ends_there_is_all_of_one_folder_or_nothing_to_load(place, tmp_path):
    old, new = make_folder(tmp_path / "old", OLD), make_folder(tmp_path / "new", NEW)
    publish_folder(old, f"{place.address}/export")
    for fatal in range(len(writes_of_publishing(place, new))):
        place.fail()
        publish_folder(old, f"{place.address}/export")
        place.fail(Fault("refuse", method="POST|DELETE", status=403, after=fatal))
        with pytest.raises(gcs.BucketError, match="the bucket refuses"):
            publish_folder(new, f"{place.address}/export")
        left = {name.removeprefix("export/"): place.get(name) for name in place.sizes()}
        # Without config.json nothing is loaded, so the rest may be a mixture.
        assert left == OLD or "config.json" not in left, fatal


@pytest.mark.parametrize("name", sorted(NEW))
def test_a_lost_object_of_a_folder_is_noticed(place, tmp_path, name):
    place.fail(Fault("lose", method="POST", name=f"export/{name}$"))
    with pytest.raises(gcs.BucketError, match=rf"export/{name} is missing right after .* the bucket loses writes\.$"):
        publish_folder(make_folder(tmp_path, NEW), f"{place.address}/export")
    marks = [mark for mark in MARKS if f"export/{mark}" in place.sizes()]
    assert name in MARKS or not marks


def test_an_object_of_another_size_is_noticed(place):
    place.put("x", b"123")
    check_written(place.address, {"x": 3})
    with pytest.raises(gcs.BucketError, match="x has 3 bytes right after 4 bytes were written"):
        check_written(place.address, {"x": 4})


def test_an_upload_that_is_damaged_on_its_way_is_noticed(place, tmp_path):
    """The answer tells the checksum of what arrived."""
    place.fail(Fault("garble", method="POST", path="upload"))
    with pytest.raises(gcs.BucketError, match="the storage service failed"):
        gcs.write_bytes(f"{place.address}/x", b"content")


# Mirrors


def pushed(place, mirror):
    """The names that a push writes."""
    place.emulator.requests.clear()
    mirror.push()
    return {name.removeprefix(place.prefix) for method, _, name in place.emulator.requests if method == "POST"}


def test_a_mirror_copies_what_changed(place, tmp_path):
    make_folder(tmp_path, {"metrics.jsonl": b"1\n", "plots/a.png": b"a", "export/config.json": b"{}", "wandb/x": b"x"})
    mirror = Mirror(tmp_path, place.address, leave_out=("export", "wandb"))
    assert pushed(place, mirror) == {"metrics.jsonl", "plots/a.png"}
    assert pushed(place, mirror) == set()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    assert pushed(place, mirror) == {"metrics.jsonl"} and place.get("metrics.jsonl") == b"1\n2\n"
    stamp = (tmp_path / "plots" / "a.png").stat()
    (tmp_path / "plots" / "a.png").write_bytes(b"b")
    os.utime(tmp_path / "plots" / "a.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert pushed(place, mirror) == {"plots/a.png"} and place.get("plots/a.png") == b"b"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("lose", method="POST", name="b$"), r"/b is missing right after 2 bytes were written: the bucket loses"),
        (Fault("refuse", method="POST", name="b$", status=403, message="no"), r"/b: the bucket refuses \(no\)"),
        (Fault("refuse", method="POST", name="b$", status=503, message="no"), r"/b: the storage service failed"),
    ],
    ids=["lost", "refused", "failed"],
)
def test_a_push_that_failed_is_done_again(place, tmp_path, fault, says):
    mirror = Mirror(make_folder(tmp_path, {"a": b"1", "b": b"22"}), place.address)
    place.fail(fault)
    with pytest.raises(gcs.BucketError, match=says):
        mirror.push()
    place.fail()
    mirror.push()
    assert place.sizes() == {"a": 1, "b": 2}


def test_a_file_that_grows_while_it_is_pushed_is_pushed_again(place, tmp_path, monkeypatch):
    path, upload = tmp_path / "events", gcs.upload
    path.write_bytes(b"1")

    def upload_and_grow(file, address):
        upload(file, address)
        path.write_bytes(path.read_bytes() + b"2")

    mirror = Mirror(tmp_path, place.address)
    with monkeypatch.context() as patch:
        patch.setattr(gcs, "upload", upload_and_grow)
        mirror.push()
    assert pushed(place, mirror) == {"events"} and place.get("events") == b"12"


# New folders of commands


def test_a_new_folder_in_a_bucket(place, tmp_path):
    out = f"{place.address}/merged/"
    check_new(out)
    with folder_for(out) as folder:
        make_folder(folder, NEW)
        assert folder.name == "merged" and place.sizes() == {}
    assert place.sizes() == {f"merged/{name}": len(content) for name, content in NEW.items()}
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
    with pytest.raises(ValueError, match=f"^{out} exists and is not an empty folder; choose another --out"):
        check_new(out)


def test_nothing_is_published_of_what_failed(place):
    with pytest.raises(json.JSONDecodeError), folder_for(f"{place.address}/merged") as folder:
        make_folder(folder, NEW)
        json.loads("{")
    assert place.sizes() == {}


def test_a_new_folder_on_disk(tmp_path):
    with folder_for(str(tmp_path / "out")) as folder:
        assert folder == tmp_path / "out"
    check_new(str(tmp_path))
    with pytest.raises(ValueError, match="addresses of the kind s3:// are not supported; give gs://BUCKET/NAME"):
        check_new("s3://bucket/x")
