"""Atomic writes, writable folders, fingerprints."""

import pytest

from qwen35_jax.storage import fingerprint, make_writable_folder, write_atomically


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    write_atomically(tmp_path / "a", "one")
    write_atomically(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


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
