"""Atomic writes, folders that replace others, writable folders, fingerprints."""

import hashlib
import json

import pytest

from qwen35_jax.storage import (
    file_digest,
    fingerprint,
    make_writable_folder,
    replace_folder,
    write_atomically,
    write_json,
)


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    write_atomically(tmp_path / "a", "one")
    write_atomically(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_json_is_readable_and_ends_with_a_line_break(tmp_path):
    write_json(tmp_path / "a.json", {"straße": [1, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"straße": [1, None]}
    assert "straße" in text and text.endswith("}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_finished_folder_replaces_another(tmp_path):
    (tmp_path / "x.old" / "left by a crash").mkdir(parents=True)
    for content in ("first", "second"):
        (tmp_path / "x.new").mkdir()
        (tmp_path / "x.new" / content).touch()
        replace_folder(tmp_path / "x", tmp_path / "x.new")
        assert [path.name for path in (tmp_path / "x").iterdir()] == [content]
        assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()


def test_make_writable_folder(tmp_path):
    make_writable_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/below cannot be written \(Not a directory\)"):
        make_writable_folder(tmp_path / "file" / "below")


def test_fingerprint_knows_content_and_name_but_not_place(tmp_path):
    for folder in ("x", "y", "z"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w").write_bytes(bytes(range(256)) * 400)
    same = [fingerprint([tmp_path / folder / "w"]) for folder in ("x", "y")]
    assert same[0] == same[1]
    content = bytearray((tmp_path / "z" / "w").read_bytes())
    content[-1] ^= 1
    (tmp_path / "z" / "w").write_bytes(bytes(content))
    assert fingerprint([tmp_path / "z" / "w"]) != same[0]
    (tmp_path / "y" / "w").rename(tmp_path / "y" / "v")
    assert fingerprint([tmp_path / "y" / "v"]) != same[0]
