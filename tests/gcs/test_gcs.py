"""Objects of a bucket: listing, reading, writing, and the copies in the cache."""

import os
import shutil
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from etils import epath

from qwen35_jax import gcs
from tests.gcs.emulator import Fault

ODD_NAME = "deep/sp ace[1]#2?%.txt"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_listed_and_read(place, tmp_path):
    (tmp_path / "file").write_bytes(b"from a file")
    gcs.write_bytes(f"{place.address}/a/one", b"one")
    gcs.upload(tmp_path / "file", f"{place.address}/a/{ODD_NAME}")
    place.put("ab", b"has the same first letter")
    assert gcs.file_sizes(f"{place.address}/a") == {"one": 3, ODD_NAME: 11}
    assert gcs.file_sizes(f"{place.address}/a/one") == {"": 3}
    assert gcs.file_sizes(f"{place.address}/none") == {}
    assert gcs.read_bytes(f"{place.address}/a/{ODD_NAME}") == b"from a file"


def test_a_large_file_is_uploaded_in_parts_and_read(place, tmp_path):
    (tmp_path / "large").write_bytes(os.urandom(6 << 20))
    gcs.upload(tmp_path / "large", f"{place.address}/large")
    assert any("uploadType=resumable" in path for _, path, _ in place.emulator.requests)
    assert gcs.local_copy(f"{place.address}/large").read_bytes() == (tmp_path / "large").read_bytes()


def test_a_listing_is_never_an_old_one(place):
    """Orbax looks by epath for what tensorstore writes."""
    gcs.filesystem()
    folder = epath.Path(place.address)
    place.put("first", b"1")
    assert [path.name for path in folder.iterdir()] == ["first"]
    place.put("second", b"1")
    assert sorted(path.name for path in folder.iterdir()) == ["first", "second"] and (folder / "second").exists()
    place.delete("second")
    assert [path.name for path in folder.iterdir()] == ["first"] and not (folder / "second").exists()


def test_epath_uses_the_same_file_system(emulator, place):
    place.put("seen", b"1")
    path = epath.Path(place.address)
    assert gcs.is_address(path) and gcs.file_sizes(path) == {"seen": 1}
    assert (path / "seen").exists() and path._backend.fs(path) is gcs.filesystem()


def test_removal_begins_with_what_makes_the_rest_valid(place):
    for name in ("a", "commit", "manifest", "z/y"):
        place.put(name, b"1")
    place.emulator.requests.clear()
    gcs.remove(f"{place.address}/", first=["commit", "absent", "manifest"])
    removed = [name.removeprefix(place.prefix) for method, _, name in place.emulator.requests if method == "DELETE"]
    assert removed[:2] == ["commit", "manifest"] and sorted(removed[2:]) == ["a", "z/y"]
    assert place.sizes() == {}
    gcs.remove(place.address)


@pytest.mark.parametrize("address", ["gs://", "gs:///x", "gs://*/x", "gs://UPPER/x", "/tmp"])
def test_an_address_without_a_bucket(address):
    with pytest.raises(ValueError, match="names no bucket"):
        gcs.list_files(address)


# Copies


def test_a_folder_is_copied_once(place):
    place.put("m/config.json", b"{}")
    place.put(f"m/{ODD_NAME}", b"odd")
    place.put("m/old.bin", b"is not read")
    place.put("m/", b"")  # What the web console makes of a folder.
    copy = gcs.local_copy(f"{place.address}/m/")
    assert copy.name == "m" and contents(copy) == {"config.json": b"{}", ODD_NAME: b"odd"}
    place.emulator.requests.clear()
    assert gcs.local_copy(f"{place.address}/m") == copy
    assert not [path for _, path, _ in place.emulator.requests if "alt=media" in path]


def test_changed_objects_become_another_copy(place):
    address = place.put("rows.jsonl", b"old")
    old = gcs.local_copy(address)
    place.put("rows.jsonl", b"new")
    assert gcs.local_copy(address).read_bytes() == b"new" and old.read_bytes() == b"old"
    assert old.name == gcs.local_copy(address).name == "rows.jsonl"


def test_a_copy_has_the_time_of_its_object(place, tmp_path):
    """A rerun tells by it whether weights have changed."""
    address = place.put("weights", b"1")
    first = gcs.local_copy(address).stat().st_mtime_ns
    shutil.rmtree(tmp_path / "cache")
    assert gcs.local_copy(address).stat().st_mtime_ns == first


def test_a_damaged_copy_is_completed(place):
    for name in ("one", "two"):
        place.put(f"m/{name}", name.encode())
    copy = gcs.local_copy(f"{place.address}/m")
    (copy / "one").unlink()
    assert contents(gcs.local_copy(f"{place.address}/m")) == {"one": b"one", "two": b"two"}


def test_processes_may_copy_the_same_at_once(place):
    for number in range(5):
        place.put(f"m/{number}", b"x" * 1000)
    with ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(lambda _: gcs.local_copy(f"{place.address}/m"), range(4)))
    assert len(copies) == 1 and len(contents(copies.pop())) == 5


def test_what_killed_processes_left_is_removed(place, tmp_path):
    unfinished = tmp_path / "cache" / "qwen35-jax" / "gs" / "unfinished"
    unfinished.mkdir(parents=True)
    for name, age in (("dead", 7200), ("alive", 10)):
        (unfinished / name).write_bytes(b"half")
        os.utime(unfinished / name, (time.time() - age,) * 2)
    gcs.local_copy(place.put("x", b"1"))
    assert [path.name for path in unfinished.iterdir()] == ["alive"]


@pytest.mark.parametrize(
    "names", [["../evil"], ["a/../../evil"], ["a//b"], ["./a"], ["/a"], ["a", "a/b"]], ids=lambda names: names[0]
)
def test_names_that_no_file_can_have(place, names, tmp_path):
    for name in names:
        place.put(f"m/{name}", b"1")
    with pytest.raises(gcs.BucketError, match=r"has a name that no file can have; rename the object\.$"):
        gcs.local_copy(f"{place.address}/m")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("d/*.jsonl", ["d/a.jsonl", "d/b.jsonl", "d/x[1].jsonl"]),
        ("d/[!a].*", ["d/b.jsonl"]),
        ("**/?.jsonl", ["d/a.jsonl", "d/b.jsonl", "d/e/c.jsonl"]),
        ("d/x[1].jsonl", ["d/x[1].jsonl"]),  # The name of an object goes before a pattern.
    ],
)
def test_a_pattern_copies_what_it_means(place, pattern, found):
    for name in ("d/a.jsonl", "d/b.jsonl", "d/e/c.jsonl", "d/a.txt", "d/x[1].jsonl"):
        place.put(name, b"1")
    place.emulator.requests.clear()
    gcs.local_data(f"{place.address}/{pattern}")
    fetched = {name for method, path, name in place.emulator.requests if "alt=media" in path}
    assert sorted(name.removeprefix(place.prefix) for name in fetched) == found


# What goes wrong with a copy


@pytest.mark.parametrize("address", ["none", "none/*.jsonl"])
def test_nothing_there(place, address):
    place.put("some.jsonl", b"1")
    with pytest.raises(gcs.ObjectNotFoundError, match=r"none"):
        gcs.local_data(f"{place.address}/{address}")


def test_a_download_that_breaks_off_is_tried_again(place):
    address = place.put("x", b"0123456789" * 1000)
    place.fail(Fault("break off", path="alt=media", times=2))
    assert gcs.local_copy(address).read_bytes() == b"0123456789" * 1000


@pytest.mark.parametrize(("action", "says"), [("break off", "broke off"), ("damage", "was cut off or changed")])
def test_a_download_that_never_arrives_whole(place, action, says, tmp_path):
    address = place.put("x", b"0123456789" * 1000)
    place.fail(Fault(action, path="alt=media"))
    with pytest.raises(gcs.BucketError, match=f"^{address}.*{says}") as error:
        gcs.local_copy(address)
    assert error.value.errno is not None
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_an_object_that_changes_while_it_is_copied(place, monkeypatch, tmp_path):
    address, fetch = place.put("x", b"old"), gcs.filesystem().get_file

    def change_and_fetch(*arguments):
        place.put("x", b"new")
        fetch(*arguments)

    monkeypatch.setattr(gcs.filesystem(), "get_file", change_and_fetch)
    with pytest.raises(gcs.BucketError, match="was cut off or changed while it was copied"):
        gcs.local_copy(address)
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_no_room_is_known_before_the_copy(place, monkeypatch):
    address = place.put("x", b"0123456789" * 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10_100))
    with pytest.raises(gcs.BucketError, match="room for a copy; let XDG_CACHE_HOME name a folder on another disk"):
        gcs.local_copy(address)


def test_a_disk_that_is_full_in_the_middle(place, monkeypatch, tmp_path):
    unfinished = tmp_path / "cache" / "qwen35-jax" / "gs" / "unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "copy").symlink_to("/dev/full")
    monkeypatch.setattr(gcs.uuid, "uuid4", lambda: types.SimpleNamespace(hex="copy"))
    with pytest.raises(OSError, match="No space left on device"):
        gcs.local_copy(place.put("x", b"1"))
    assert not list(unfinished.iterdir())


def test_the_package_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    gcs.filesystem.cache_clear()
    with pytest.raises(ValueError, match=r"pip install -e '\.\[gcs\]'$"):
        gcs.list_files("gs://bucket/x")
