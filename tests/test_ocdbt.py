"""The files that a database needs are those without which it cannot be read."""

import logging

import pytest
import tensorstore

from qwen35_jax.ocdbt import MANIFEST, needed_files


@pytest.fixture
def database(tmp_path):
    """A database of a tree of several heights, whose values lie in many files."""
    config = {"max_decoded_node_bytes": 500, "max_inline_value_bytes": 8}
    spec = {"driver": "ocdbt", "base": f"file://{tmp_path}/", "config": config}
    store = tensorstore.KvStore.open(spec).result()
    for i in range(60):
        store[f"key{i:03d}"] = b"value %d " % i * 5
    for i in range(30):
        store[f"key{i:03d}"] = b"another %d " % i * 5  # so that some files are of earlier versions only
    return tmp_path


def is_readable(folder):
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
    try:
        keys = store.list().result()
        return len(keys) == 60 and all(store[key] for key in keys)
    except (KeyError, ValueError):
        return False


def test_exactly_the_needed_files_are_named(database):
    needed = needed_files(f"file://{database}")
    files = {path.relative_to(database).as_posix(): path for path in database.rglob("*") if path.is_file()}
    assert needed.keys() | {MANIFEST} < files.keys()
    assert all(size <= files[name].stat().st_size for name, size in needed.items())
    unneeded = sorted(files.keys() - needed.keys() - {MANIFEST})
    for name in unneeded:
        files.pop(name).unlink()
    assert is_readable(database)
    for name in list(needed)[::8]:
        content = files[name].read_bytes()
        files[name].write_bytes(content[: needed[name] - 1])
        assert not is_readable(database)
        files[name].write_bytes(content)
    assert is_readable(database)


def test_a_tree_of_another_look_is_warned_of(database, monkeypatch, caplog):
    whole = needed_files(f"file://{database}")
    dump = tensorstore.ocdbt.dump

    class Other:
        def __init__(self, found):
            self._found = found

        def result(self):
            return {name: value for name, value in self._found.result().items() if name != "height"}

    monkeypatch.setattr(tensorstore.ocdbt, "dump", lambda *arguments: Other(dump(*arguments)))
    with caplog.at_level(logging.WARNING):
        assert needed_files(f"file://{database}").items() < whole.items()
    assert "lost files are not looked for" in caplog.text
