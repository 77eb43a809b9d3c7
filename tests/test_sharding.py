"""The mesh: what it divides, what it refuses, and what lies where."""

import importlib.util
import itertools
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from qwen35_jax.model import Qwen35
from qwen35_jax.planning.aot import topology_devices
from qwen35_jax.presets import PRESETS
from qwen35_jax.sharding import AXES, check_mesh, make_mesh, named_sharding, over_mesh

TEXT = PRESETS["2b"].text
SLICES = ("v5e:2x4", "v5e:4x4", "v5e:4x8", "v5p:2x2x2", "v5p:2x2x4", "v5p:4x4x4", "v6e:4x4")


def mesh_sizes(**sizes: int) -> dict[str, int]:
    return {"data": 1, "fsdp": 1, "context": 1, "tensor": 1} | sizes


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [
        ({}, {}),
        ({"fsdp": 8}, {"sequences": 8, "tokens": 4095}),
        ({"fsdp": 4, "tensor": 2}, {"sequences": 4}),
        ({"tensor": 8}, {}),
        ({"context": 8}, {"sequences": 1, "tokens": 262_144}),
        ({"data": 2, "fsdp": 16}, {"sequences": 64}),
    ],
)
def test_meshes_that_divide_the_2b_are_accepted(sizes, batch):
    check_mesh(TEXT, mesh_sizes(**sizes), **batch)


@pytest.mark.parametrize(
    ("sizes", "batch", "problem", "remedy"),
    [
        ({"tensor": 3}, {},
         "num_attention_heads=8 is not a multiple of tensor=3",
         "mesh.data=3 mesh.fsdp=1 mesh.context=1 mesh.tensor=1"),
        ({"fsdp": 3, "tensor": 2}, {},
         "hidden_size=2048 is not a multiple of fsdp=3", "mesh.data=3 mesh.fsdp=1 mesh.context=1 "),
        ({"tensor": 16}, {},
         "num_attention_heads=8 is not a multiple of tensor=16", "mesh.fsdp=2 mesh.context=1 mesh.tensor=8"),
        ({"fsdp": 8}, {"sequences": 4},
         "the batch's sequences=4 is not a multiple of data*fsdp=8", "mesh.data=1 mesh.fsdp=4 "),
        ({"context": 8}, {"sequences": 8, "tokens": 100},
         "tokens in a sequence=100 is not a multiple of 2*con", "context=2"),
        ({"data": 7}, {"sequences": 1, "tokens": 10}, "the batch's sequences=1 is not", "no mesh of 7 devices fits"),
    ],
)  # fmt: skip
def test_other_meshes_are_refused_with_the_nearest_that_fit(sizes, batch, problem, remedy):
    with pytest.raises(ValueError) as error:
        check_mesh(TEXT, mesh_sizes(**sizes), **batch)
    assert problem in str(error.value)
    assert remedy in str(error.value).partition("; ")[2]


def test_more_devices_than_there_are_are_refused():
    with pytest.raises(ValueError, match="needs 16 devices, but there are 8"):
        make_mesh(fsdp=16)
    with pytest.raises(ValueError, match="has a size below 1"):
        make_mesh(data=0)


def meshes_of(num_devices: int) -> list[dict[str, int]]:
    """Lists the axis sizes of all meshes of so many devices, a power of two."""
    powers = [2**i for i in range(num_devices.bit_length())]
    every = itertools.product(powers, repeat=len(AXES))
    return [dict(zip(AXES, sizes, strict=True)) for sizes in every if math.prod(sizes) == num_devices]


@pytest.mark.slow  # The profiler, in a test of the same process, would crash on a libtpu without a TPU.
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, which knows the slices, is not there")
@pytest.mark.parametrize("name", SLICES)
def test_every_mesh_of_a_slice_can_be_made_and_lies_as_jax_lays_it(name):
    devices = topology_devices(name)
    equal = 0
    for axes in meshes_of(len(devices)):
        mesh = make_mesh(**axes, devices=devices)
        assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}
        try:
            theirs = jax.make_mesh(tuple(axes.values()), AXES, devices=devices)
        except NotImplementedError:
            continue  # JAX makes fewer meshes than we do
        assert (mesh.devices == theirs.devices).all(), axes
        equal += 1
    assert equal >= 10
    # Three devices fill no box, so JAX has no order for them.
    assert list(make_mesh(data=3, devices=devices).devices.flat) == devices[:3]


@pytest.mark.parametrize("size", [name for name, config in PRESETS.items() if config.text.moe is None])
def test_every_parameter_of_every_size_is_split(size):
    """Over fsdp=4 and tensor=2 every matrix lies in eighths; key heads are split between heads or not at all."""
    model = nnx.eval_shape(lambda: Qwen35(PRESETS[size], rngs=nnx.Rngs(0)))
    mesh, four = make_mesh(fsdp=4, tensor=2), make_mesh(fsdp=2, tensor=4)
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        spec = named_sharding(param, mesh).spec
        named = {axis for entry in spec if entry for axis in (entry if isinstance(entry, tuple) else (entry,))}
        if len(param.get_metadata("logical_axes")) > 2:
            of_some = {"conv1d": {"tensor"}, "patch_embed": {"fsdp"}}
            wanted = next((of_some[part] for part in path if part in of_some), {"fsdp", "tensor"})
            assert named == wanted, path
        if path[-2] == "k_proj":
            heads = PRESETS[size].text.num_key_value_heads
            assert named_sharding(param, four).spec[-1] == ("tensor" if heads % 4 == 0 else None)


def test_a_function_runs_on_each_array_shard_of_its_arguments():
    x, y = jnp.arange(8.0 * 6).reshape(8, 6), jnp.ones((5, 6))
    seen = []

    def local(x, absent, y):
        seen.append((x.shape, absent, y.shape))
        return x * 2, jax.lax.psum(jnp.sum(x), ("data", "context"))

    axes = {"in_axes": (("batch", "length"), ("batch",), ("heads", "length")), "out_axes": (("batch", "length"), ())}
    plain = over_mesh(lambda x, _, y: (x * 2, jnp.sum(x)), x, None, y, **axes)
    with jax.set_mesh(make_mesh(data=4, context=2)):
        # The mesh does not split "heads". A size that it did not divide would be left whole.
        doubled, total = jax.jit(lambda x, y: over_mesh(local, x, None, y, **axes))(x, y)
    assert seen == [((2, 3), None, (5, 3))]
    assert (doubled == plain[0]).all() and total == plain[1]
    assert doubled.sharding.spec == P("data", "context")
