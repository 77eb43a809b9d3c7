"""The index of a JSONL file: lines by number, kept for large files, made anew for changed ones."""

import json
import logging
import os
import random

import numpy as np
import pytest

from train.data import jsonl
from train.data.jsonl import JsonlFile


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Treats every file as a large one and keeps indices in a folder of the test."""
    monkeypatch.setattr(jsonl, "_CACHED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qwen35-jax" / "jsonl"


@pytest.mark.parametrize("block", [1, 5, 1000])
@pytest.mark.parametrize("last_newline", [True, False])
def test_lines_between_empty_ones(tmp_path, monkeypatch, block, last_newline):
    monkeypatch.setattr(jsonl, "_BLOCK", block)
    rng = random.Random(block)
    lines = [str(10**n) if rng.random() < 0.6 else "" for n in range(40)] + ["7"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n" * last_newline)
    file = JsonlFile(tmp_path / "a.jsonl")
    filled = [(number, int(line)) for number, line in enumerate(lines, start=1) if line]
    assert [(file.where(i), file[i]) for i in range(len(file))] == [
        (f"{tmp_path / 'a.jsonl'} line {number}", value) for number, value in filled
    ]


def test_the_index_is_eight_bytes_a_row(write_rows):
    path = write_rows([{"text": "words"}] * 1000)
    assert jsonl._make_index(jsonl.Path(path)).nbytes == 8 * (3 + 1001)


def test_the_index_of_a_large_file_is_kept(write_rows, cache, monkeypatch):
    rows = [{"text": str(i)} for i in range(100)]
    path = jsonl.Path(write_rows(["", *map(json.dumps, rows)]))
    first = JsonlFile(path)
    assert len([*cache.iterdir()]) == 1
    monkeypatch.setattr(jsonl, "_make_index", None)  # no second reading
    again = JsonlFile(path)
    assert isinstance(again._starts, np.memmap)
    assert [again[i] for i in range(100)] == [first[i] for i in range(100)] == rows
    assert (again.checksum, again.where(3)) == (first.checksum, first.where(3))


def test_a_changed_file_is_indexed_anew(write_rows, cache):
    path = jsonl.Path(write_rows([{"text": "a"}, {"text": "b"}]))
    before = JsonlFile(path)
    path.write_text('{"text": "abc"}\n{"t": "c"}\n')  # the same size
    os.utime(path, ns=(1, 1))
    after = JsonlFile(path)
    assert after[1] == {"t": "c"}
    assert after.checksum != before.checksum


def test_a_damaged_index_is_made_anew(write_rows, cache):
    path = jsonl.Path(write_rows([{"text": str(i)} for i in range(100)]))
    JsonlFile(path)
    [kept] = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:300])
    assert JsonlFile(path)[99] == {"text": "99"}


def test_a_cache_that_cannot_be_written_only_costs_time(write_rows, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(jsonl, "_CACHED_BYTES", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert JsonlFile(jsonl.Path(write_rows([{"text": "a"}])))[0] == {"text": "a"}
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1000])
def test_blank_lines_are_skipped_but_counted(tmp_path, monkeypatch, block):
    monkeypatch.setattr(jsonl, "_BLOCK", block)
    rng = random.Random(block)
    blanks = ["", "\r", " ", "\t \r", "   "]
    for trial in range(20):
        lines = [
            f"{rng.choice(['', ' ', chr(9)])}{n}\r" if rng.random() < 0.5 else rng.choice(blanks) for n in range(12)
        ]
        path = tmp_path / f"{trial}.jsonl"
        path.write_bytes("\n".join([*lines, rng.choice(["7", "", " ", "\r"])]).encode())
        filled = [
            (n, int(line)) for n, line in enumerate(path.read_bytes().decode().split("\n"), start=1) if line.strip()
        ]
        file = JsonlFile(path)
        assert [(file.where(i), file[i]) for i in range(len(file))] == [
            (f"{path} line {n}", value) for n, value in filled
        ]


def test_a_byte_order_mark_is_no_text(tmp_path):
    for content in (b'\xef\xbb\xbf{"a": 1}\r\n\r\n2\r\n', b'\xef\xbb\xbf\r\n{"a": 1}\n2'):
        (tmp_path / "a.jsonl").write_bytes(content)
        file = JsonlFile(tmp_path / "a.jsonl")
        assert [file[0], file[1], len(file)] == [{"a": 1}, 2, 2]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf\n")
    assert len(JsonlFile(tmp_path / "a.jsonl")) == 0
