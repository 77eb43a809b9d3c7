"""Batches of any declared fields come onto any mesh the same way, and wrong arrays are refused."""

import importlib.util
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.planning.aot import topology_devices
from qwen35_jax.sharding import make_mesh
from tests.test_sharding import SLICES, meshes_of
from tests.train.launching import REPO, environment, finish, free_port
from train.batch import TOKEN_FIELDS, Field, abstract_batch, put_batch, sequences_of_process
from train.data.masking import Example
from train.data.packing import make_batch

K, D, P = 3, 8, 5
# As a teacher's signals, its hidden states and the pixels of a sequence would be declared.
FIELDS = {
    **TOKEN_FIELDS,
    "teacher_top": Field(jnp.float32, ("batch", "length", None), (K,)),
    "teacher_hidden": Field(jnp.bfloat16, ("batch", "length", "features"), (D,)),
    "pixels": Field(jnp.float32, ("batch", None, None), (P, D)),
}
MESHES = [
    {"data": 8},
    {"fsdp": 2, "context": 2, "tensor": 2},
    {"data": 2, "fsdp": 2, "context": 2},
    {"context": 8},
]


@pytest.mark.parametrize("axes", [{"data": 2}, {"data": 2, "context": 2}, {"tensor": 2}])
def test_a_batch_lies_the_same_whoever_feeds_it(axes):
    mesh = make_mesh(**axes)
    batch = {"input_ids": np.arange(12 * 8, dtype=np.int32).reshape(12, 8)}
    sequences = sequences_of_process(sequences=12, accumulation=3, mesh=mesh)
    assert sequences == range(12)  # one process holds every device
    placed = put_batch(batch, accumulation=3, mesh=mesh)["input_ids"]
    for sequence in range(12):
        np.testing.assert_array_equal(placed[sequence % 3, sequence // 3], batch["input_ids"][sequence])


@pytest.mark.slow  # The profiler, in a test of the same process, would crash on a libtpu without a TPU.
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, which knows the slices, is not there")
@pytest.mark.parametrize("name", SLICES)
def test_every_host_of_a_slice_feeds_its_share(name):
    """Sequences are split evenly between the hosts; hosts that share a sequence's tokens or heads share it whole."""
    devices = topology_devices(name)
    hosts = sorted({device.process_index for device in devices})
    for axes in meshes_of(len(devices)):
        mesh = make_mesh(**axes, devices=devices)
        parts = mesh.devices.reshape(axes["data"] * axes["fsdp"], -1)
        sequences = 2 * len(parts)
        ranges = [sequences_of_process(sequences=sequences, accumulation=2, mesh=mesh, process=host) for host in hosts]
        for host, fed in zip(hosts, ranges, strict=True):
            held = sum(host in {device.process_index for device in part} for part in parts)
            assert len(fed) == 2 * held, (axes, host)
        assert set().union(*ranges) == set(range(sequences)), axes
        if parts.shape[1] == 1:
            assert {len(fed) / sequences for fed in ranges} == {1 / len(hosts)}, axes


TWO_HOSTS = """
import sys
import jax, numpy as np
from qwen35_jax.distributed import ProcessConfig, gather, join
from qwen35_jax.sharding import make_mesh
from train.batch import put_batch, sequences_of_process

join(ProcessConfig(sys.argv[1], 2, int(sys.argv[2])))
# As on a slice whose rows of chips cross the hosts.
mesh = make_mesh(data=4, devices=[jax.devices()[i] for i in (0, 2, 1, 3)])
mine = sequences_of_process(sequences=16, accumulation=2, mesh=mesh)
ids = np.repeat(np.arange(16, dtype=np.int32)[:, None], 4, 1)
placed = put_batch({"input_ids": ids[mine.start : mine.stop]}, accumulation=2, mesh=mesh, num_sequences=16,
                   first_sequence=mine.start)["input_ids"]
for micro_batch in range(2):
    parts = [shard.data[micro_batch, :, 0].tolist() for shard in placed.addressable_shards]
    print([mine.start, mine.stop], gather(parts), flush=True)
"""


def test_hosts_whose_devices_interleave_feed_their_shares(tmp_path):
    script = tmp_path / "two_hosts.py"
    script.write_text(TWO_HOSTS)
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), address, str(index)],
            cwd=REPO, env=environment(devices=2), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip
    # Even sequences are the first micro-batch, odd ones the second; each device has two of its process's eight.
    assert finish(processes).splitlines()[-2:] == [
        "[0, 8] [[[0, 2], [4, 6]], [[8, 10], [12, 14]]]",
        "[0, 8] [[[1, 3], [5, 7]], [[9, 11], [13, 15]]]",
    ]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_any_declared_fields_are_placed(axes, accumulation):
    mesh = make_mesh(**axes)
    rng = np.random.default_rng(0)
    batch = {
        name: rng.integers(0, 9, field.shape(16, 16)).astype(jnp.dtype(field.dtype)) for name, field in FIELDS.items()
    }
    placed = put_batch(batch, accumulation=accumulation, mesh=mesh, fields=FIELDS)
    shapes = abstract_batch(sequences=16, tokens=16, accumulation=accumulation, mesh=mesh, fields=FIELDS)
    assert placed.keys() == shapes.keys() == FIELDS.keys()
    for name, array in placed.items():
        assert (array.shape, array.dtype) == (shapes[name].shape, shapes[name].dtype)
        assert array.sharding == shapes[name].sharding
        for sequence in range(16):
            got = array[sequence % accumulation, sequence // accumulation]
            np.testing.assert_array_equal(got, batch[name][sequence], err_msg=name)
    per_device = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["context"]
    shard = placed["teacher_top"].addressable_shards[0].data.shape
    assert shard == (accumulation, 16 // accumulation // per_device[0], 16 // per_device[1], K)
    assert placed["pixels"].addressable_shards[0].data.shape[2:] == (P, D)


def test_signals_of_examples_are_packed_beside_their_tokens():
    def example(length, first):
        ids = np.arange(first, first + length, dtype=np.int32)
        return Example(ids, ids % 2 == 0, {"teacher_top": np.repeat(ids[:, None], K, 1).astype(np.float32)})

    fields = {name: FIELDS[name] for name in (*TOKEN_FIELDS, "teacher_top")}
    sequences = [[((0, 0), example(3, 10)), ((1, 0), example(2, 20))], []]
    batch = make_batch(sequences, sequence_length=6, pad_token_id=99, fields=fields)
    assert batch["teacher_top"].shape == (2, 6, K) and batch["teacher_top"].dtype == np.float32
    assert batch["teacher_top"][0, :, 1].tolist() == [10, 11, 12, 20, 21, 0]
    assert batch["input_ids"][0].tolist() == [10, 11, 12, 20, 21, 99]
    assert batch["segment_ids"][0].tolist() == [1, 1, 1, 2, 2, 0]
    assert not batch["teacher_top"][1].any()
    with pytest.raises(ValueError, match="cannot fill the fields pixels"):
        make_batch(sequences, sequence_length=6, pad_token_id=99, fields=FIELDS)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("labels", np.zeros((2, 4), np.int32), "'labels', which is not one of its fields input_ids"),
        ("input_ids", np.zeros((2, 4), np.int64), r"'input_ids' of the batch is int64\[2, 4\], .* dtype int32"),
        ("input_ids", np.zeros((2, 4, 1), np.int32), r"is int32\[2, 4, 1\]"),
        ("teacher_top", np.zeros((2, 4, K + 1), np.float32), r"is float32\[2, 4, 4\], .* sizes \(3,\)"),
    ],
)
def test_arrays_of_no_field_or_of_another_shape_are_refused(name, array, message):
    with pytest.raises(ValueError, match=message):
        put_batch({name: array}, accumulation=1, mesh=make_mesh(), fields=FIELDS)


@pytest.mark.parametrize(("axes", "sizes"), [(("length",), ()), (("batch", "length"), (3,)), (("batch", None), ())])
def test_fields_that_cannot_be(axes, sizes):
    with pytest.raises(ValueError, match=r"must begin with 'batch'|needs \d sizes"):
        Field(jnp.int32, axes, sizes)


def test_the_batch_of_the_pipeline_has_the_declared_fields():
    batch = make_batch([[]], sequence_length=4, pad_token_id=0)
    assert {name: array.dtype for name, array in batch.items()} == {
        name: jnp.dtype(field.dtype) for name, field in TOKEN_FIELDS.items()
    }
