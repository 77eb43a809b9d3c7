"""Row groups are read when they are needed, and few are held."""

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.config.data import DataConfig
from train.data import sources
from train.data.order import ShuffledRows
from train.data.parquet import GroupCache, ParquetFile
from train.data.pipeline import make_batches
from train.data.sources import RowSource

ROWS = [{"text": f"{i} " * (1 + i % 7)} for i in range(1000)]


@pytest.fixture
def path(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=50)
    return tmp_path / "a.parquet"


def test_rows_and_row_groups(path):
    file = ParquetFile(path)
    assert file.group_rows == [50] * 20
    assert all(size > 100 for size in file.group_bytes)
    source = RowSource([path, path])
    assert [source[i] for i in range(2000)] == ROWS * 2
    assert source.where(1050).endswith("a.parquet row 51")


def test_an_epoch_reads_each_row_group_once(path, monkeypatch):
    read = []
    plain = ParquetFile.read_group
    monkeypatch.setattr(ParquetFile, "read_group", lambda self, n: read.append(n) or plain(self, n))
    monkeypatch.setattr(sources, "WINDOW_BYTES", 3 * ParquetFile(path).group_bytes[0])
    source = RowSource([path])
    order = ShuffledRows(*source.groups, window_bytes=sources.WINDOW_BYTES, seed=(0,))
    rows = [order[place] for place in range(1000)]
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, 1000, 8):  # threads work a few rows ahead of each other
            wanted = rows[start : start + 8]
            assert list(pool.map(source.__getitem__, wanted)) == [ROWS[row] for row in wanted]
    assert sorted(read) == [*range(20)]


def test_the_cache_drops_what_was_used_longest_ago():
    cache, reads = GroupCache(max_bytes=10), []

    def get(key, size=4):
        return cache.get((0, key), lambda: reads.append(key) or pa.table({"n": [key]}), size)

    for key in (1, 2, 1, 3, 1, 2):
        assert get(key)["n"].to_pylist() == [key]
    assert reads == [1, 2, 3, 2]
    get(4, size=99)  # larger than all room, still held
    get(4, size=99)
    assert reads == [1, 2, 3, 2, 4]


def test_the_fingerprint_needs_no_whole_file(tmp_path):
    texts = ["x" * 10_000 + str(i) for i in range(300)]
    prints = []
    for name, changed in (("a", texts), ("b", texts), ("c", [*texts[:-1], "x" * 10_000 + "y99"])):
        pq.write_table(pa.table({"text": changed}), tmp_path / f"{name}.parquet", compression="none")
        prints.append(RowSource([tmp_path / f"{name}.parquet"]).fingerprint)
    assert prints[0] == prints[1] != prints[2]


ASKED = pa.array([[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 2)


def _called(values):
    """Rows whose second message calls a function with a value of some type; the first call has none."""
    arguments = pa.StructArray.from_arrays([pa.array(["x", "x"]), values], ["a", "b"])
    calls = pa.StructArray.from_arrays([pa.array(["f", "f"]), arguments], ["name", "arguments"])
    one = pa.array([0, 1, 2], pa.int32())
    message = {"role": pa.array(["assistant"] * 2), "tool_calls": pa.ListArray.from_arrays(one, calls)}
    message = pa.StructArray.from_arrays([*message.values()], [*message])
    return {"prompt": ["q", "q"], "completion": pa.ListArray.from_arrays(one, message)}


TYPES = {
    "day": (_called(pa.array([None, date(2024, 1, 2)])), "wrong_type", "holds a value of type date"),
    "time": (_called(pa.array([None, datetime(2024, 1, 2)])), "wrong_type", "datetime, which JSON does not have"),
    "far time": (
        _called(pa.array([None, 1 << 60], pa.timestamp("ms"))),
        "wrong_type",
        "a value that Python cannot hold",
    ),
    "small time": (_called(pa.array([None, 1], pa.timestamp("ns"))), "wrong_type", "a value "),
    "decimal": (_called(pa.array([None, Decimal("1.5")])), "wrong_type", "holds a value of type Decimal"),
    "bytes": (_called(pa.array([None, b"\xff"])), "not_utf8", "bytes that are not UTF-8"),
    "no number": (_called(pa.array([None, float("nan")])), "number", "the number nan"),
    "keys": (
        _called(pa.array([None, [(1, 2)]], pa.map_(pa.int32(), pa.int32()))),
        "wrong_type",
        "key that is the number",
    ),
    "twice": (_called(pa.array([None, [("k", 2)] * 2], pa.map_(pa.string(), pa.int32()))), "wrong_type", "cannot hold"),
    "broken text": ({"text": pa.array([b"a", b"\xff"]).cast(pa.string(), safe=False)}, "wrong_type", "cannot hold"),
    "broken bytes": ({"text": pa.array([b"a", b"a\xc3"])}, "not_utf8", "'text' holds bytes that are not UTF-8"),
    "text of numbers": (
        {"text": pa.array(["a", None]), "messages": [None, "3"]},
        "wrong_type",
        "'messages' is the num",
    ),
    "no JSON": ({"text": pa.array(["a", None]), "messages": [None, "[{]"]}, "invalid_json", "'messages' is not valid"),
    "no JSON of its type": (
        {"messages": pa.ExtensionArray.from_storage(pa.json_(), pa.array([json.dumps(ASKED[0].as_py()), "{"]))},
        "invalid_json",
        "'messages' is not valid JSON",
    ),
}


@pytest.mark.parametrize("name", TYPES)
def test_what_json_does_not_have_is_refused_with_its_row(name, tmp_path, tokenizer):
    columns, reason, words = TYPES[name]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    config = DataConfig(str(tmp_path / "a.parquet"), 256, sequences_per_batch=1, epochs=1)
    with pytest.raises(ValueError, match=rf"a.parquet row 2: .*{words}"):
        make_batches(config, tokenizer)
    iterator = make_batches(replace(config, bad_rows="drop"), tokenizer)
    [batch] = iterator
    assert batch["segment_ids"].max() == 1
    assert iterator.report()["unusable_rows"] == iterator.report()["dropped"] == {reason: 1}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([None, [("k", 2)]], pa.map_(pa.string(), pa.int32())), '{"k": 2}'),
        (pa.array([None, b"abc"]), "abc"),
        (pa.array([None, "abc"]).dictionary_encode(), "abc"),
        (pa.array([None, [1, 2]]), "[1, 2]"),
        (pa.array([None, [1, 2]], pa.list_(pa.int8(), 2)), "[1, 2]"),
        (pa.array([None, 1.0]), "1.0"),
        (pa.array([None, True]), "True"),
        (pa.array([None, "abc"], pa.large_string()), "abc"),
    ],
)
def test_types_that_train(values, words, tmp_path, tokenizer):
    pq.write_table(pa.table(_called(values)), tmp_path / "a.parquet")
    [batch] = make_batches(DataConfig(str(tmp_path / "a.parquet"), 256, sequences_per_batch=1, epochs=1), tokenizer)
    text = tokenizer.decode(batch["input_ids"][0].tolist())
    assert text.count("<parameter=a>\nx\n</parameter>") == 2
    assert text.count(f"<parameter=b>\n{words}\n</parameter>") == text.count("<parameter=b>") == 1


_READ_ALL = """
    import json, resource, sys
    from pathlib import Path
    from train.data import sources
    sources.WINDOW_BYTES = 8 << 20
    from train.data.order import ShuffledRows
    from train.data.sources import RowSource

    def peak():
        # VmHWM and not ru_maxrss, which a process inherits from the one that started it.
        [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
        return int(line.split()[1]) << 10

    RowSource([Path(sys.argv[1])])[0]
    before = peak()
    source = RowSource([Path(name) for name in sys.argv[2:]])
    order = ShuffledRows(*source.groups, window_bytes=sources.WINDOW_BYTES, seed=(0,))
    read = sum(len(source[order[place]]["text"]) for place in range(len(source)))
    print(json.dumps({"rows": len(source), "read": read, "grown": peak() - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_data_larger_than_what_is_held(tmp_path):
    """400 MB of Parquet and JSONL pass through a process that grows by a fraction of them."""
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "first.parquet")
    total, schema = 0, pa.schema([("text", pa.string())])
    with (
        pq.ParquetWriter(tmp_path / "large.parquet", schema, compression="zstd") as writer,
        (tmp_path / "large.jsonl").open("w") as lines,
    ):
        for group in range(100):
            texts = [f"{group} {row} " + "word " * 2000 for row in range(200)]
            total += 2 * sum(map(len, texts))
            # A dictionary would store equal texts once; these differ.
            writer.write_table(pa.table({"text": texts}, schema=schema), row_group_size=200)
            lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    files = [str(tmp_path / name) for name in ("first.parquet", "large.parquet", "large.jsonl")]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_READ_ALL), *files], capture_output=True, text=True, check=True
    )
    report = json.loads(result.stdout)
    assert report["rows"] == 40_000
    assert report["read"] == total > 400e6
    # Two windows of 8 MiB, one group over each, an index block, and what the allocators keep.
    assert report["grown"] < total / 3
