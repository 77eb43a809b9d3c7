"""Compressed files and arrays of JSON are read as JSONL, once made, with the places of the user's own file."""

import errno
import gzip
import json
import logging
import random

import pytest
import zstandard

from tests.processing.conversations import ASK, assistant
from train.config.data import DataConfig
from train.data import unpack
from train.data.pipeline import make_batches
from train.data.rows import RowError
from train.data.sources import RowSource

ROWS = [{"text": f'ä \n " ] }} {n}'} for n in range(40)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, indent=1, ensure_ascii=False).encode()
FILES = {
    "a.jsonl.gz": gzip.compress(LINES, mtime=0),
    "a.jsonl.zst": zstandard.compress(LINES),
    "a.json": ARRAY,
    "b.json": LINES,
    "a.json.gz": gzip.compress(ARRAY, mtime=0),
    "a.json.zst": zstandard.compress(ARRAY),
    "b.json.gz": gzip.compress(LINES, mtime=0),
    "members.jsonl.gz": gzip.compress(LINES[:500], mtime=0) + gzip.compress(LINES[500:]),
    "bom.json": b"\xef\xbb\xbf" + ARRAY,
    "windows.jsonl.gz": gzip.compress(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n") + b"\r\n"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qwen35-jax" / "rows"


@pytest.fixture
def write(tmp_path):
    def run(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return run


@pytest.mark.parametrize("block", [3, 1 << 20])
@pytest.mark.parametrize("name", FILES)
def test_rows_and_their_places(name, block, write, monkeypatch):
    monkeypatch.setattr(unpack, "_BLOCK", block)
    path = write(name, FILES[name])
    source = RowSource([path])
    assert [source[n] for n in range(len(source))] == ROWS
    unit = "row" if FILES[name] in (ARRAY, FILES["bom.json"]) or name.startswith("a.json.") else "line"
    assert source.where(6) == f"{path} {unit} 7"


def test_every_way_gives_the_same_batches(write, tokenizer):
    batches = [
        [batch["input_ids"].tolist() for batch in make_batches(DataConfig(str(path), 64, epochs=1), tokenizer)]
        for path in (write("plain.jsonl", LINES), *(write(name, content) for name, content in FILES.items()))
    ]
    assert all(each == batches[0] for each in batches)


def test_a_file_is_unpacked_once_and_anew_when_it_changes(write, cache, monkeypatch):
    path = write("a.jsonl.gz", FILES["a.jsonl.gz"])
    first = RowSource([path])
    assert len([*cache.iterdir()]) == 1
    with monkeypatch.context() as patch:
        patch.setattr(unpack, "_blocks", None)  # no second reading
        assert RowSource([path]).fingerprint == first.fingerprint
    write("a.jsonl.gz", gzip.compress(LINES[: LINES.index(b"\n") + 1]))
    assert len(RowSource([path])) == 1
    assert len([*cache.iterdir()]) == 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl.gz", FILES["a.jsonl.gz"][:-20], "a.jsonl.gz is damaged or cut off"),
        ("a.jsonl.gz", b"no gzip at all", "a.jsonl.gz is damaged or cut off"),
        ("a.jsonl.zst", FILES["a.jsonl.zst"][:-9] + b"\0" * 9, "a.jsonl.zst is damaged or cut off"),
        ("a.json.zst", b"no zstd at all", "a.json.zst is damaged or cut off"),
        ("a.json", ARRAY[:-1], "a.json ends inside its array, after row 39; it is cut off"),
        ("a.json", ARRAY[:600], "a.json ends inside its array"),
        ("a.json", ARRAY + b" 3", "a.json holds something behind its array"),
        ("a.json", ARRAY + ARRAY, "a.json holds something beside its array"),
        ("a.json", b'[{"text": "a"},, {"text": "b"}]', "nothing between two commas of its array, at row 2"),
        ("a.json", b'[{"text": "a"},]', "nothing between two commas of its array, at row 2"),
        ("a.json", b"[]", "a.json is empty"),
        ("a.json", json.dumps({"data": ROWS}, indent=1).encode(), "an object that goes over several lines"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "a.jsonl.gz is empty"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "a.jsonl is written in UTF-16; save it as UTF-8"),
    ],
)
def test_what_cannot_be_read_is_one_line(name, content, words, write, cache):
    path = write(name, content)
    with pytest.raises(ValueError, match=words) as caught:
        RowSource([path])
    assert "\n" not in str(caught.value)
    assert not [kept for kept in cache.glob("*") if kept.suffix == ".partial"]


def test_a_bad_row_of_an_array_is_counted(write, tokenizer):
    bad = [b'{"text": "a"', b'{"text": 1' + b"0" * 5000 + b"}", b"[" * 5000 + b"]" * 5000, b'{"text": "a\nb"}', b"nul"]
    good = b'{"text": "words"}'
    content = b"[" + b", ".join([good, *[each + b"}" if each == bad[0] else each for each in bad], good]) + b"]"
    source = RowSource([write("a.json", content)])
    assert len(source) == 7
    reasons = []
    for row in range(7):
        try:
            source[row]
        except RowError as err:
            reasons.append(err.reason)
    assert reasons == ["number", "too_deep", "invalid_json", "invalid_json"]
    iterator = make_batches(DataConfig(str(write("a.json", content)), 64, epochs=1, bad_rows="drop"), tokenizer)
    assert sum(len(set(batch["segment_ids"][batch["segment_ids"] > 0])) for batch in iterator) == 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_a_copy_that_cannot_be_written_is_one_line(code, write, cache, monkeypatch):
    def fail(descriptor):
        raise OSError(code, "the reason")

    path = write("a.jsonl.gz", FILES["a.jsonl.gz"])
    monkeypatch.setattr(unpack.os, "fsync", fail)
    with pytest.raises(OSError, match=r"the reason while .*a.jsonl.gz was unpacked; XDG_CACHE_HOME names") as caught:
        RowSource([path])
    assert (caught.value.errno, caught.value.filename) == (code, str(cache))
    assert [*cache.iterdir()] == []


def test_zstandard_is_named_where_it_is_absent(write, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(ValueError, match="`pip install zstandard` to read it"):
        RowSource([write("a.jsonl.zst", FILES["a.jsonl.zst"])])


def test_any_array_is_cut_at_its_commas(write, monkeypatch):
    rng = random.Random(0)

    def value(depth=0):
        kind = rng.randrange(7)
        if depth > 3 or kind < 3:
            return rng.choice(['a"]},{[\\', 'ä\n"\\"', 1, -2.5e3, None, True, "", [], {}])
        if kind < 5:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        return {rng.choice('"],[ab'): value(depth + 1) for _ in range(rng.randrange(4))}

    for number in range(150):
        monkeypatch.setattr(unpack, "_BLOCK", rng.choice([1, 2, 3, 7, 64]))
        rows = [value() for _ in range(1 + rng.randrange(6))]
        content = json.dumps(rows, indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5)
        source = RowSource([write(f"{number}.json", (rng.choice(["", " \n"]) + content).encode())])
        assert [source[n] for n in range(len(source))] == rows


def test_what_is_unpacked_is_logged(write, caplog):
    path = write("a.json", json.dumps([{"messages": [ASK, assistant("4")]}]).encode())
    with caplog.at_level(logging.INFO):
        RowSource([path])
    assert f"unpacking {path} into " in caplog.text
