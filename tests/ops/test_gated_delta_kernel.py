"""The delta rule's kernels, interpreted on the CPU, against the recurrence: values, gradients, documents, meshes."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen35_jax.ops.gated_delta import affine_map, gated_delta, kernel, kernel_fits, sharded
from qwen35_jax.ops.gated_delta.chunks import Chunks
from qwen35_jax.planning.aot import compile_abstract, topology_devices
from qwen35_jax.planning.hlo import read_costs
from qwen35_jax.sharding import make_mesh

B, N, K = 2, 2, 128
NAMES = ("o", "after", "q", "k", "v", "log_decay", "beta", "state")


def make_inputs(T: int, *, parallel: bool = False):
    """Returns the arrays of the op, q, k and v in bfloat16; parallel keys that hardly forget are the hardest system."""
    rng = np.random.default_rng(T)
    unit = rng.normal(size=(2, B, T, N, K))
    if parallel:
        unit[1] = 1 + 1e-2 * unit[1]
    q, k = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    log_decay = -rng.exponential(0.1, (B, T, N))
    log_decay[:, 49::50] = -200  # its exponential underflows, and the inverse of that overflows
    beta = rng.uniform(size=(B, T, N))
    if parallel:
        log_decay, beta = -1e-3 * rng.uniform(size=(B, T, N)), 1 - 1e-3 * beta
    tokens = (jnp.asarray(x, jnp.bfloat16) for x in (q * K**-0.5, k, rng.normal(size=(B, T, N, K))))
    state = 0.1 * rng.normal(size=(B, N, K, K))
    return (*tokens, *(jnp.asarray(x, jnp.float32) for x in (log_decay, beta, state)))


def make_documents(T: int):
    """Returns documents that end inside a chunk, one longer than a chunk, and padding around and between them."""
    first = np.repeat([0, 1, 2, 3], [5, 40, 160, T - 205])
    second = np.repeat([4, 0, 6, 0], [30, 100, 150, T - 280])
    return jnp.asarray([first, second], jnp.int32)


@partial(jax.jit, static_argnames="form")
def results(inputs, segment_ids=None, *, form):
    """Returns both results and all gradients. The cotangents are small whole numbers, which every dtype holds."""
    op = recurrence if form == "exact" else partial(gated_delta, segment_ids=segment_ids, implementation=form)
    return with_gradients(op, NAMES, *inputs)


def with_gradients(op, names, *inputs):
    values, pullback = jax.vjp(op, *inputs)
    cotangents = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(1).integers(-2, 3, x.shape), x.dtype), values)
    return dict(zip(names, (*jax.tree.leaves(values), *pullback(cotangents)), strict=True))


def assert_close(got, want):
    """Allows float32 sums in another order, and a bfloat16 result that is rounded the other way, by its last bit."""
    for name, x in want.items():
        share = 2**-7 if x.dtype == jnp.bfloat16 else 1e-5
        x, y = (np.asarray(z, np.float32) for z in (x, got[name]))
        assert np.abs(x - y).max() < share * np.abs(x).max(), name


def test_the_kernels_equal_the_recurrence_where_chunks_do_not_divide_the_tokens():
    inputs = make_inputs(300)
    assert_close(results(inputs, form="kernel"), results(inputs, form="recurrent"))


def test_the_kernels_equal_the_recurrence_on_documents_and_padding():
    inputs, segment_ids = make_inputs(384), make_documents(384)
    padding = segment_ids == 0
    inputs = tuple(jnp.where(padding[..., None, None], jnp.nan, x).astype(x.dtype) for x in inputs[:3]) + inputs[3:]
    got, want = (results(inputs, segment_ids, form=form) for form in ("kernel", "recurrent"))
    assert_close(got, want)
    for name in ("o", "q", "k", "v", "log_decay", "beta"):
        np.testing.assert_array_equal(np.asarray(got[name], np.float32)[padding], 0)


@pytest.mark.parametrize("parallel", [False, True], ids=["random keys", "parallel keys"])
def test_errors_are_at_most_ten_times_those_of_the_recurrence(parallel):
    """Against float64, values and gradients are off by at most 10 times what the float32 recurrence is off by."""
    inputs = make_inputs(256, parallel=parallel)
    got, float32 = (results(inputs, form=form) for form in ("kernel", "recurrent"))
    with jax.enable_x64(True):
        want = results(tuple(jnp.asarray(x, jnp.float64) for x in inputs), form="exact")

    def error(result, name):
        return np.abs(np.asarray(result[name], np.float64) - np.asarray(want[name])).max()

    for name in NAMES:
        assert error(got, name) <= 10 * error(float32, name), name


def recurrence(q, k, v, log_decay, beta, state):
    def step(state, token):
        q, k, v, log_decay, beta = token
        state = jnp.exp(log_decay)[..., None, None] * state
        write = beta[..., None] * (v - jnp.einsum("BNK,BNKV->BNV", k, state))
        state = state + jnp.einsum("BNK,BNV->BNKV", k, write)
        return state, jnp.einsum("BNK,BNKV->BNV", q, state)

    after, o = jax.lax.scan(step, state, [jnp.moveaxis(x, 1, 0) for x in (q, k, v, log_decay, beta)])
    return jnp.moveaxis(o, 0, 1), after


def test_the_affine_map_of_the_kernels_equals_the_chunked_one():
    _, k, v, log_decay, beta, _ = make_inputs(256)
    segment_ids = make_documents(384)[:, :256]

    def results(form):
        op = partial(affine_map, segment_ids=segment_ids, implementation=form)
        return with_gradients(op, ("P", "R", *NAMES[3:7]), k, v, log_decay, beta)

    got, want = results("kernel"), results("chunked")
    # A document begins inside this stretch, so nothing of the state before it reaches the end.
    np.testing.assert_array_equal(got.pop("P"), 0)
    np.testing.assert_array_equal(want.pop("P"), 0)
    assert_close(got, want)


def test_a_mesh_over_sequences_and_heads_changes_nothing(monkeypatch):
    """Devices that interpret the kernels run what a TPU runs: stretches of sequences and groups of heads."""
    monkeypatch.setattr(sharded, "pick", lambda k, v, _: "kernel" if kernel_fits(k, v) else "chunked")
    *inputs, _ = make_inputs(512)
    segment_ids = make_documents(512)

    def gradients(*inputs):
        def op(*inputs):
            return sharded.gated_delta_sharded(*inputs, segment_ids=segment_ids)[0]

        return with_gradients(op, ("o", *NAMES[2:7]), *inputs)

    want = jax.device_get(jax.jit(gradients)(*inputs))
    with jax.set_mesh(make_mesh(context=2, tensor=2)):
        got = jax.device_get(jax.jit(gradients)(*inputs))
    assert_close(got, want)


def test_inputs_that_do_not_fit_are_refused():
    shapes = {(1, 128, 16, 128): True, (1, 128, 3, 128): True, (1, 128, 12, 128): False, (1, 100, 8, 128): False}
    shapes |= {(1, 128, 8, 64): False}
    for shape, fits in shapes.items():
        x = jnp.zeros(shape, jnp.bfloat16)
        assert kernel_fits(x, x) is fits, shape
    x, gates = jnp.zeros((1, 128, 8, 128)), jnp.zeros((1, 128, 8))
    with pytest.raises(ValueError, match=r"float32\[1, 128, 8, 128\].*Use implementation='chunked'"):
        gated_delta(x, x, x, gates, gates, implementation="kernel")


@pytest.mark.parametrize("name", kernel.KERNEL_PRODUCTS)
def test_plans_know_the_work_of_the_kernels(monkeypatch, name):
    """Traces the kernels and counts the calls of their arithmetic (products) and of ``dot_general`` (passes)."""
    work = {"products": 0, "passes": 0}

    def counted(kind, multiply):
        def count(*args, **options):
            out = multiply(*args, **options)
            a, b = (x for x in args if isinstance(x, jax.Array))
            summed = (a.size * b.size / out.size / N) ** 0.5
            work[kind] += out.size * summed / (N * K**3)
            return out

        return count

    monkeypatch.setattr(jax.lax, "dot_general", counted("passes", jax.lax.dot_general))
    arithmetic = kernel.KERNEL._replace(
        product=counted("products", kernel.KERNEL.product),
        coarse_product=counted("products", kernel.KERNEL.coarse_product),
    )
    monkeypatch.setattr(kernel, "KERNEL", arithmetic)

    width = 2 * K if "map" in name else K
    x, gate = jnp.zeros((1, K, N, K), jnp.bfloat16), jnp.zeros((1, 1, N, K))
    chunks = Chunks(None if "map" in name else x, x, jnp.zeros((1, K, N, width), jnp.bfloat16), gate, gate, None)
    forward = (chunks, jnp.zeros((1, N, K, width)))
    if "forward" in name:
        jax.make_jaxpr(kernel._forward)(*forward)
    else:
        cotangents, residuals = jax.eval_shape(kernel._forward, *forward)
        work |= {"products": 0, "passes": 0}
        jax.make_jaxpr(kernel._backward)(residuals, cotangents)
    assert tuple(work.values()) == kernel.KERNEL_PRODUCTS[name]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
@pytest.mark.slow  # The profiler, in a test of the same process, would crash on a libtpu without a TPU.
@pytest.mark.parametrize("context", [1, 2])
def test_the_tpu_compiler_takes_the_kernels(context):
    mesh = make_mesh(devices=topology_devices("v5e:2x2")[:context], context=context)
    whole = NamedSharding(mesh, PartitionSpec())
    inputs = [jax.ShapeDtypeStruct((1, 512, 16, K), jnp.bfloat16, sharding=whole)] * 3
    inputs += [jax.ShapeDtypeStruct((1, 512, 16), jnp.float32, sharding=whole)] * 2

    def gradients(*inputs):
        o, pullback = jax.vjp(lambda *inputs: sharded.gated_delta_sharded(*inputs)[0], *inputs)
        return o, pullback(o)

    compiled = compile_abstract(jax.jit(gradients), *inputs, mesh=mesh)
    expected = [name for name in kernel.KERNEL_PRODUCTS if context > 1 or "map" not in name]
    called = read_costs(compiled.text).without_cycles
    assert compiled.fits and sum(called.values()) == len(expected)
    # Differentiation adds to the names.
    assert all(any(name in call for call in called) for name in expected)
