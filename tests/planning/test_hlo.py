"""Costs read from small programs compiled for the CPU, for which they are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen35_jax.planning.hlo import Collective, array_shapes, read_costs


def compile_text(function, *shapes, sharding=None) -> str:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text()


def chain(x, weights):
    """Multiplies by each of a stack of matrices."""
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_scan_of_products_counts_every_step():
    text = compile_text(chain, (8, 64), (5, 64, 64))
    assert read_costs(text).flops == 5 * 2 * 8 * 64 * 64
    gradient = compile_text(jax.grad(lambda x, w: chain(x, w).sum(), argnums=(0, 1)), (8, 64), (5, 64, 64))
    assert read_costs(gradient).flops == 3 * 5 * 2 * 8 * 64 * 64


def test_the_counts_of_nested_loops_multiply():
    def outer(x, stacks):
        return jax.lax.scan(lambda x, weights: (chain(x, weights), None), x, stacks)[0]

    assert read_costs(compile_text(outer, (8, 64), (3, 5, 64, 64))).flops == 15 * 2 * 8 * 64 * 64


def test_a_loop_with_an_unknown_count_is_listed_by_name():
    def halve(x):
        return jax.lax.while_loop(lambda x: jnp.max(x) > 1, lambda x: (x @ x) / 2, x)

    costs = read_costs(compile_text(halve, (16, 16)))
    assert len(costs.unknown_loops) == 1
    assert costs.flops == 2 * 16**3


def test_batched_products_and_every_branch_count():
    def branch(x, y, z):
        product = jnp.einsum("bij,bkj->bik", x, y)
        return jax.lax.cond(z[0] > 0, lambda p: p @ p, lambda p: p, product)

    assert read_costs(compile_text(branch, (3, 16, 32), (3, 16, 32), (1,))).flops == 3 * 2 * 16 * 16 * (32 + 16)


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1,), "padding": [(3, 0)], "feature_group_count": 4},
        {"window_strides": (2,), "padding": [(1, 2)], "rhs_dilation": (2,)},
        {"window_strides": (3,), "padding": [(0, 1)], "lhs_dilation": (4,)},
    ],
)
def test_convolutions_count_as_xla_counts_one(options):
    kernel = (8, 8 // options.get("feature_group_count", 1), 4)
    convolve = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=("NCW", "OIW", "NCW"), **options)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 8, 19), kernel)]
    lowered = jax.jit(convolve).lower(*shapes)
    assert read_costs(lowered.compile().as_text()).flops == lowered.cost_analysis()["flops"]


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    ("kind", "step", "sent"),
    [
        # Each device holds 16 x 64 float32, 4096 bytes.
        ("all-reduce", lambda x: jax.lax.psum(x, "b"), 2 * 4096 * 3 / 4),
        ("all-gather", lambda x: jax.lax.all_gather(x, "b").mean(0), 4096 * 3),
        ("reduce-scatter", lambda x: jnp.tile(jax.lax.psum_scatter(x, "b", tiled=True), (4, 1)), 4096 * 3 / 4),
        ("all-to-all", lambda x: jax.lax.all_to_all(x, ("a", "b"), 0, 0, tiled=True), 4096 * 7 / 8),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)]), 4096),
    ],
)
def test_collectives_of_a_loop_count_every_step(mesh, kind, step, sent):
    spec = PartitionSpec(("a", "b"))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def repeat(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(step(x)), None), x, length=3)[0]

    text = compile_text(repeat, (128, 64), sharding=NamedSharding(mesh, spec))
    assert read_costs(text).collectives == [Collective(kind, 3, 3 * sent)]


def test_a_fusion_reads_its_operands_and_writes_its_result_once():
    text = compile_text(lambda x, y: jnp.sin(x) * y + 1, (256, 512), (256, 512))
    assert read_costs(text).bytes == 3 * 4 * 256 * 512


def test_traffic_of_a_scan_grows_with_its_length_not_with_its_square():
    short, long = (read_costs(compile_text(chain, (64, 64), (n, 64, 64))).bytes for n in (8, 64))
    assert long == pytest.approx(8 * short, rel=0.2)
    # Each step reads its weight at least once and writes at least its result.
    assert 64 * 2 * 4 * 64 * 64 < long < 64 * 8 * 4 * 64 * 64


def test_only_arrays_in_memory_are_listed_not_values_inside_fusions():
    def outer(x, y):
        return jnp.sum(jnp.sin(x)[:, None] * y[None, :])

    shapes = array_shapes(compile_text(outer, (300,), (70,)))
    assert {("f32", (300,)), ("f32", (70,)), ("f32", ())} <= shapes
    assert not any(np.prod(shape) >= 300 * 70 for _, shape in shapes), "the outer product stays inside a fusion"
    assert ("f32", (300, 70)) in array_shapes(compile_text(lambda x, y: x[:, None] * y, (300,), (70,)))


def test_a_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match=r"compiled\.as_text"):
        read_costs("module @jit_f {}")
    with pytest.raises(ValueError, match=r"compiled\.as_text"):
        array_shapes("")
