"""The tower compiled for a TPU that is not there: attention is the kernel, at both head widths, over a mesh too."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from qwen35_jax.model import Qwen35
from qwen35_jax.planning.aot import abstract_model, compile_abstract, topology_devices
from qwen35_jax.planning.hlo import read_costs
from qwen35_jax.presets import PRESETS
from qwen35_jax.sharding import array_sharding, make_mesh
from qwen35_jax.vision.patches import Patches


def abstract_patches(mesh, rows: int, patches: int) -> Patches:
    """Shapes of a batch of patches on a mesh."""

    def place(shape, dtype):
        axes = ("batch", "length", None)[: len(shape)]
        return jax.ShapeDtypeStruct(shape, dtype, sharding=array_sharding(axes, shape, mesh))

    return Patches(
        place((rows, patches, 1536), jnp.uint8), place((rows, patches), jnp.int32), place((rows, patches, 4), jnp.int32)
    )


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
@pytest.mark.slow  # The profiler, in a test of the same process, would crash on a libtpu without a TPU.
@pytest.mark.parametrize(
    ("size", "patches", "axes"), [("2b", 1024, {}), ("9b", 4096, {}), ("2b", 4096, {"context": 2, "tensor": 2})]
)
def test_the_tower_calls_the_kernel(size, patches, axes):
    """Two blocks; a row of many kernel blocks has two kernels, for small frames and for large ones."""
    vision = dataclasses.replace(PRESETS[size].vision, depth=2, out_hidden_size=64)
    config = dataclasses.replace(PRESETS["tiny"], vision=vision)
    mesh = make_mesh(devices=topology_devices("v5e:2x2")[: 4 if axes else 1], **axes)
    model = abstract_model(lambda: Qwen35(config, rngs=nnx.Rngs(0)), mesh)
    graphdef, weights, rest = nnx.split(model, lambda path, _: path[0] == "vision", ...)

    def loss(weights, rest, patches):
        features = nnx.merge(graphdef, weights, rest).vision_features(patches, remat="block")
        return jnp.sum(jnp.sin(features.main.astype(jnp.float32)))

    compiled = compile_abstract(
        jax.jit(jax.value_and_grad(loss)), weights, rest, abstract_patches(mesh, 1, patches), mesh=mesh
    )
    assert compiled.fits
    calls = read_costs(compiled.text).without_cycles
    kinds = ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv")
    counts = [sum(count for name, count in calls.items() if kind in name) for kind in kinds]
    assert min(counts) > 0, calls
