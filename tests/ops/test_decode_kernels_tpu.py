"""The kernels of a decode step, compiled for a TPU at the sizes of the 2B: one chip, and two that share heads."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen35_jax.ops.attention.paged import paged_attention
from qwen35_jax.ops.gated_delta.replay import gated_delta_replay
from qwen35_jax.planning.aot import compile_abstract, topology_devices
from qwen35_jax.planning.hlo import read_costs
from qwen35_jax.sharding import make_mesh

B, N, K = 64, 16, 128

pytestmark = [
    pytest.mark.slow,  # The profiler, in a test of the same process, would crash on a libtpu without a TPU.
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"),
]


def compile_for(tensor: int, function, *shapes):
    mesh = make_mesh(devices=topology_devices("v5e:2x2")[:tensor], tensor=tensor)
    whole = NamedSharding(mesh, PartitionSpec())
    arrays = (jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for shape, dtype in shapes)
    return compile_abstract(jax.jit(function), *arrays, mesh=mesh)


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize(("T", "sequences"), [(1, B), (4, B), (512, 1)])
def test_the_tpu_compiler_takes_attention_to_pages(T, sequences, tensor):
    arrays = [((sequences, T, 8, 256), jnp.bfloat16), ((6, 1024, 4, 256, 256), jnp.bfloat16), ((), jnp.int32)]
    arrays += [((sequences, 128), jnp.int32), ((sequences,), jnp.int32)]
    compiled = compile_for(tensor, paged_attention, *arrays)
    assert compiled.fits and any("paged_attention" in name for name in read_costs(compiled.text).without_cycles)


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("T", [1, 4])
def test_the_tpu_compiler_takes_the_replay_of_a_window(T, tensor):
    keys, gates = ((B, T, N, K), jnp.bfloat16), ((B, T, N), jnp.float32)
    tokens = [keys, keys, gates, gates]

    def replay(q, k, v, log_decay, beta, states, layer, *past):
        return gated_delta_replay(q, k, v, log_decay, beta, states, layer, past[:4], past[4])

    arrays = [keys, *tokens, ((6, B, N, K, K), jnp.float32), ((), jnp.int32), *tokens, ((B,), jnp.int32)]
    compiled = compile_for(tensor, replay, *arrays)
    assert compiled.fits and any("gated_delta_replay" in name for name in read_costs(compiled.text).without_cycles)
