"""The command that writes a store, in processes of its own."""

import numpy as np
import pytest

from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import make_mesh
from tests.train.conftest import small_config
from tests.train.launching import REPO, finish, kill, timeless, wait_until
from train.data.pipeline import make_batches
from train.signals.store import Store

TINY = str(REPO / "configs" / "tiny_distill.py")
# Small files, so that there are several of so few data.
SMALL_FILES = """
import sys
from train import teach
from train.signals import teaching
teaching.SHARD_BYTES = 1 << 16
teach.main(sys.argv[1:])
"""


@pytest.fixture
def start(command, inputs):
    """Starts processes that write a store."""

    def start(folder, *options, processes=1):
        flags = ("--teacher.path", str(inputs / "base"), "--teacher.dtype", "float32", "--teacher.store", str(folder))
        layout = ("--data.sequence-length", "64", "--mesh.data", str(processes), "--data.shards", str(processes))
        all_options = (*flags, *layout, "--data.eval-fraction", "0.1", *options)
        return command.start(folder.parent, *all_options, config=TINY, code=SMALL_FILES, processes=processes)

    return start


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_write_one_store(start, stores, settings, inputs, tmp_path):
    printed = finish(start(tmp_path / "store", processes=2))
    assert "144 documents, 1,008 tokens with a signal" in printed and "tokens/s" in printed
    found, plain = Store.open(tmp_path / "store"), Store.open(stores["hidden"])
    writers = {path.name.split("-")[2] for path in found.folder.glob("signals-*")}
    assert writers == {"0000.safetensors", "0001.safetensors"}
    assert found.header == plain.header and found.totals["documents"] == plain.totals["documents"]
    data, tokenizer = settings("unused").recipe.data, Tokenizer.from_pretrained(inputs / "base")
    for got, want, _ in zip(
        *(make_batches(data, tokenizer, signals=each) for each in (found, plain)), range(20), strict=False
    ):
        for name in want:
            # float32 sums in another order.
            np.testing.assert_allclose(got[name], want[name], atol=1e-5)
    np.testing.assert_array_equal(found.head_on(make_mesh()), plain.head_on(make_mesh()))


@pytest.mark.slow
def test_two_killed_processes_go_on_and_write_the_same_files(start, tmp_path):
    finish(start(tmp_path / "whole" / "store", processes=2))
    folder = tmp_path / "killed" / "store"
    processes = start(folder, processes=2)
    wait_until(lambda: len(list(folder.glob("signals-*"))) > 2, processes)
    kill(processes)
    assert "goes on after" in finish(start(folder, processes=2))
    assert files_of(folder) == files_of(tmp_path / "whole" / "store")


DISTIL = """
import sys
from train import distill
distill.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["hidden", "topk"])
def test_a_run_from_the_store_has_the_metrics_of_a_live_one_bit_for_bit(signal, start, command, inputs, tmp_path):
    """For as long as the first epoch lasts, validation included."""
    teacher = tmp_path / "teacher"
    create_checkpoint(small_config(), teacher, seed=1, dtype="float32", tokenizer_from=inputs / "tokenizer")
    options = ["--teacher.path", str(teacher), "--teacher.dtype", "float32", "--teacher.signal", signal]
    options += ["--teacher.k", "5", "--mtp.target", "teacher", "--data.sequence-length", "64", "--no-export"]
    options += ["--data.eval-fraction", "0.1", "--steps", "6", "--evaluate-every", "3", "--report-to", "none"]
    stored = [*options, "--teacher.store", str(tmp_path / "store")]
    finish(command.start(tmp_path, *stored, config=TINY, code=SMALL_FILES))
    command.run(tmp_path / "stored", *stored, config=TINY, code=DISTIL)
    command.run(tmp_path / "live", *options, config=TINY, code=DISTIL)
    rows = timeless(tmp_path / "live")
    assert len(rows) == 6 and all(row["divergence"] > 0 for row in rows) and "eval_divergence" in rows[-1]
    assert timeless(tmp_path / "stored") == rows


def test_wrong_input_ends_in_one_line(start, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "notes.txt").write_text("mine")
    [process] = start(tmp_path / "store")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.splitlines()[-1].endswith("is not empty and holds no store; name another folder with --teacher.store.")
