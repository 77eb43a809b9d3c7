"""Rows by number, and errors that name the file and the line."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen35_jax.hf.hub import find_files
from train.data import jsonl
from train.data.forms import columns_of
from train.data.rows import RowError
from train.data.sources import RowSource

ROWS = [{"text": "eins ä"}, {"text": "zwei\u2028"}, {"text": "drei"}]


def test_jsonl_skips_empty_lines_but_counts_them(write_rows):
    source = RowSource([Path(write_rows([json.dumps(ROWS[0]), "", "", json.dumps(ROWS[1], ensure_ascii=False), ""]))])
    assert [source[i] for i in range(len(source))] == ROWS[:2]
    assert source.where(1).endswith("data.jsonl line 4")


def test_jsonl_without_a_last_newline_and_with_windows_ends(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r\n{"text": "b"}')
    source = RowSource([tmp_path / "a.jsonl"])
    assert [source[0], source[1]] == [{"text": "a"}, {"text": "b"}]


def test_jsonl_across_reading_blocks(write_rows, monkeypatch):
    monkeypatch.setattr(jsonl, "_BLOCK", 7)
    source = RowSource([Path(write_rows(ROWS))])
    assert [source[i] for i in range(len(source))] == ROWS


@pytest.mark.parametrize("line", ['{"text": ', "words", '{"text": "\udc80"}'.encode("utf-8", "surrogateescape")])
def test_bad_json_is_named_by_line(tmp_path, line):
    lines = [b'{"text": "a"}'] * 16 + [line if isinstance(line, bytes) else line.encode()] + [b'{"text": "b"}']
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(lines))
    source = RowSource([tmp_path / "data.jsonl"])
    with pytest.raises(RowError, match="not valid JSON") as caught:
        source[16]
    assert caught.value.reason == "invalid_json"
    assert source.where(16).endswith("data.jsonl line 17")
    assert source[17] == {"text": "b"}


def test_parquet_gives_its_columns(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "hi"}], "tools": None, "other": 1}, {"text": "a", "other": 2}]
    pq.write_table(pa.Table.from_pylist(rows, _schema(rows)), tmp_path / "data.parquet")
    source = RowSource([tmp_path / "data.parquet"], columns=["messages", "text", "system"])
    assert source[0] == {"messages": [{"role": "user", "content": "hi"}], "text": None}
    assert source[1] == {"messages": None, "text": "a"}
    assert source.columns_not_read == {"tools": 2, "other": 2}
    assert source.where(1).endswith("data.parquet row 2")
    whole = RowSource([tmp_path / "data.parquet"])
    assert (whole[1]["other"], whole.columns_not_read) == (2, {})


def _schema(rows):
    return pa.unify_schemas([pa.Table.from_pylist([row]).schema for row in rows], promote_options="permissive")


def test_files_follow_one_another(write_rows, tmp_path):
    write_rows(ROWS, "b.jsonl")
    write_rows(ROWS[:1], "a.jsonl")
    pq.write_table(pa.Table.from_pylist(ROWS[1:]), tmp_path / "c.parquet")
    source = RowSource(find_files(str(tmp_path / "*")))
    assert [source[i]["text"] for i in range(len(source))] == [row["text"] for row in ROWS[:1] + ROWS + ROWS[1:]]
    assert [Path(source.where(i)).name for i in (0, 1, 3, 4)] == [
        "a.jsonl line 1",
        "b.jsonl line 1",
        "b.jsonl line 3",
        "c.parquet row 1",
    ]


def test_threads_do_not_disturb_each_other(write_rows):
    rows = [{"text": f"{i} " * (i % 50)} for i in range(500)]
    source = RowSource([Path(write_rows(rows))])
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, range(len(rows)))) == rows


def test_fingerprint_is_of_the_content(write_rows):
    prints = [
        RowSource([Path(write_rows(rows, name))]).fingerprint
        for rows, name in ((ROWS, "a.jsonl"), (ROWS, "b.jsonl"), (ROWS[:2], "c.jsonl"))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_unreadable_files_are_named(write_rows, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "columns.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    for path, words in {
        write_rows([], "none.jsonl"): "none.jsonl is empty",
        write_rows(["", ""], "blank.jsonl"): "blank.jsonl is empty",
        tmp_path / "none.parquet": "none.parquet is empty",
        tmp_path / "bad.parquet": "bad.parquet is not a readable Parquet file",
        tmp_path / "columns.parquet": "its columns: prompt",
        tmp_path / "absent.jsonl": "absent.jsonl cannot be read: No such file",
        write_rows(ROWS, "data.csv"): "data.csv ends in none of .jsonl, .json,",
    }.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            RowSource([Path(path)], columns=columns_of())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("absent.jsonl", "'absent.jsonl' does not exist"),
        ("data/absent.jsonl", "'data/absent.jsonl' does not exist"),
        ("/absent/file", "does not exist"),
        ("absent-*.jsonl", "matches no file"),
    ],
)
def test_missing_paths(path, words):
    with pytest.raises(ValueError, match=words):
        find_files(path)
