"""Arrays made of several tensors, by a table that no model has yet: single experts and a quantised weight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from qwen35_jax.hf.assembly import arrays_of, by_array, check_cover, shape_of
from qwen35_jax.hf.load import read_parameters
from qwen35_jax.hf.names import TensorSpec
from qwen35_jax.hf.safetensors import read_checkpoint
from qwen35_jax.hf.save import host_tensors, write_tensors
from qwen35_jax.sharding import make_mesh
from tests.hf.helpers import files_of

G, E, F, D = 2, 2, 12, 8
MESHES = [{}, {"fsdp": 4, "tensor": 2}, {"tensor": 8}, {"fsdp": 2, "tensor": 3}]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Quantised:
    values: jax.Array
    scales: jax.Array


def expert_specs():
    """Gate and up projection of each expert: the two halves of its part of one array."""
    return [
        TensorSpec(
            f"layers.{g}.experts.{e}.{half}_proj.weight", (F, D), "F32", ("experts", "weight"), (g, e, place), (0, 1)
        )
        for g in range(G)
        for e in range(E)
        for half, place in (("gate", slice(0, F)), ("up", slice(F, 2 * F)))
    ]


def one_expert():
    """The four tensors of one expert in two periods, the halves along the last axis."""
    halves = (slice(0, F), slice(F, 2 * F))
    return [
        TensorSpec(f"{g}.{half}", (F, D), "F32", ("w",), (g, 0, slice(None), halves[half]), (1, 0))
        for g in range(G)
        for half in range(2)
    ]


def quantised_specs():
    path = ("linear", "weight")
    return [
        TensorSpec("linear.weight", (F, D), "F16", (*path, "values"), (), (1, 0)),
        TensorSpec("linear.weight_scale", (F, 1), "F32", (*path, "scales"), (), (1, 0)),
    ]


def parameter(shape, axes, dtype=jnp.float32):
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), logical_axes=axes)


def make_state():
    scales = jax.ShapeDtypeStruct((1, F), jnp.float32)
    quantised = Quantised(jax.ShapeDtypeStruct((D, F), jnp.float16), scales)
    return nnx.State(
        {
            "experts": {"weight": parameter((G, E, 2 * F, D), (None, None, "mlp", "embed"))},
            "linear": {"weight": nnx.Param(quantised, logical_axes=("embed", "mlp"))},
            "w": parameter((G, 1, D, 2 * F), (None, None, "embed", "mlp")),
        }
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with every tensor of the table and one that is not ours, and the table."""
    specs = [*expert_specs(), *one_expert(), *quantised_specs()]
    rng = np.random.default_rng(0)
    dtypes = {"F32": np.float32, "F16": np.float16}
    tensors = {spec.name: rng.normal(size=spec.shape).astype(dtypes[spec.dtype]) for spec in specs}
    folder = tmp_path_factory.mktemp("assembly")
    save_file(tensors | {"vision": np.ones(3, np.float32)}, folder / "model.safetensors")
    return folder, {spec.name: spec for spec in specs}, tensors


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
@pytest.mark.parametrize("sizes", MESHES)
def test_tensors_land_at_their_places_and_return_byte_for_byte(checkpoint, tmp_path, sizes):
    folder, table, tensors = checkpoint
    stored, state = read_checkpoint(folder), make_state()
    read_parameters(state, table, stored, make_mesh(**sizes))
    for g in range(G):
        for e in range(E):
            halves = [tensors[f"layers.{g}.experts.{e}.{name}_proj.weight"] for name in ("gate", "up")]
            np.testing.assert_array_equal(state["experts"]["weight"][g, e], np.concatenate(halves))
        halves = [tensors[f"{g}.{half}"].T for half in range(2)]
        np.testing.assert_array_equal(state["w"][g, 0], np.concatenate(halves, axis=1))
    quantised = state["linear"]["weight"].get_value()
    np.testing.assert_array_equal(quantised.values, tensors["linear.weight"].T)
    np.testing.assert_array_equal(quantised.scales, tensors["linear.weight_scale"].T)

    weight, devices = state["experts"]["weight"][...], int(np.prod(list(sizes.values())))
    assert weight.addressable_shards[0].data.size * devices == weight.size
    arrays = dict(item for path, param in nnx.to_flat_state(state) for item in arrays_of(path, param))
    write_tensors(host_tensors(arrays, table.values(), {}), stored, folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(folder)


def test_boxes_and_shape():
    specs = one_expert()
    assert specs[3].box == (slice(1, 2), slice(0, 1), slice(0, D), slice(F, 2 * F))
    assert shape_of(specs) == (G, 1, D, 2 * F)
    check_cover(specs, (G, 1, D, 2 * F))
    assert {path: len(group) for path, group in by_array(quantised_specs()).items()} == {
        ("linear", "weight", "values"): 1,
        ("linear", "weight", "scales"): 1,
    }


def test_layer_of_a_component():
    assert {spec.layer_path for spec in quantised_specs()} == {("linear",)}


def test_a_table_that_does_not_cover_an_array_is_refused():
    specs, shape = one_expert(), (G, 1, D, 2 * F)
    with pytest.raises(AssertionError, match=r"fills w at \[0, 0, 0, 12\] from no tensor, not from one"):
        check_cover([specs[0], *specs[2:]], shape)
    with pytest.raises(AssertionError, match=r"fills w at \[1, 0, 0, 0\] from \['1.0', 'again'\], not from one"):
        check_cover([*specs, dataclasses.replace(specs[2], name="again")], shape)
    with pytest.raises(AssertionError, match=r"gives w the shape \(2, 1, 8, 24\), the model \(3, 1, 8, 24\)"):
        check_cover(specs, (3, 1, D, 2 * F))
    with pytest.raises(AssertionError, match=r"0.0 of shape \(12, 8\) does not fit slice\(0, 7, None\)"):
        check_cover([dataclasses.replace(specs[0], index=(0, 0, slice(None), slice(0, 7)))], shape)
