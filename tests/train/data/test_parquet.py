"""Row groups are read when they are needed, and few are held."""

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.data import sources
from train.data.order import ShuffledRows
from train.data.parquet import GroupCache, ParquetFile
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
