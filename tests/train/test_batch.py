"""Batches of any declared fields come onto any mesh the same way, and wrong arrays are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.sharding import make_mesh
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
