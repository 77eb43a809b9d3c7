"""Compares the forms of the delta rule that a user may choose by ``model.delta_rule``, forward and backward.

    python -m benchmarks.delta_rule_forms            on this machine, in float32
    python -m benchmarks.delta_rule_forms --tpu v5e  by the TPU compiler's estimate for one chip, in bfloat16

The shapes go from many heads and few tokens to few heads and many tokens. The associative form spends three times the
arithmetic to replace a loop over chunks by a tree. So it can only gain where a step of the loop leaves the machine
idle.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from qwen35_jax.ops.gated_delta import gated_delta
from qwen35_jax.planning.aot import compile_abstract, topology_devices
from qwen35_jax.planning.devices import find_device
from qwen35_jax.planning.hlo import read_costs
from qwen35_jax.sharding import make_mesh

FORMS = ("chunked", "associative")
SHAPES = ((16, 4_096), (4, 16_384), (1, 16_384), (1, 65_536))
"""Heads and tokens, of width 128."""

WIDTH = 128


def gradients(form: str) -> Callable:
    """Returns forward and backward of a form as one compiled function."""

    def loss(q, k, v, log_decay, beta):
        outputs, _ = gated_delta(q, k, v, log_decay, beta, implementation=form)
        return jnp.sum(jnp.sin(outputs.astype(jnp.float32)))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))


def measured_seconds(form: str, heads: int, tokens: int, repeats: int) -> float:
    """Returns the median time on this machine after one call that is not counted."""
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(2, 1, tokens, heads, WIDTH))
    q, k = (unit / np.linalg.norm(unit, axis=-1, keepdims=True)).astype(np.float32)
    v = rng.normal(size=(1, tokens, heads, WIDTH)).astype(np.float32)
    gates = rng.uniform(size=(2, 1, tokens, heads)).astype(np.float32)
    inputs = jax.device_put((q * WIDTH**-0.5, k, v, -0.1 * gates[0], gates[1]))
    run, seconds = gradients(form), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(run(*inputs))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def estimated_seconds(form: str, heads: int, tokens: int, chip: str) -> float:
    """Returns the compiler's estimate for one TPU chip; it is high, but of both forms alike."""
    mesh = make_mesh(devices=topology_devices(f"{chip}:1x1"))
    whole = NamedSharding(mesh, PartitionSpec())
    vectors = jax.ShapeDtypeStruct((1, tokens, heads, WIDTH), jnp.bfloat16, sharding=whole)
    gates = jax.ShapeDtypeStruct((1, tokens, heads), jnp.float32, sharding=whole)
    compiled = compile_abstract(gradients(form), vectors, vectors, vectors, gates, gates, mesh=mesh)
    return read_costs(compiled.text).cycles / find_device(chip).clock_hz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tpu", metavar="CHIP", help="v5e, v5p or v6e")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{'heads':>6} {'tokens':>8} " + " ".join(f"{form + ', ms':>16}" for form in FORMS) + "   ratio")
    for heads, tokens in SHAPES:
        if options.tpu:
            seconds = [estimated_seconds(form, heads, tokens, options.tpu) for form in FORMS]
        else:
            seconds = [measured_seconds(form, heads, tokens, options.repeats) for form in FORMS]
        cells = " ".join(f"{1e3 * each:>16.2f}" for each in seconds)
        print(f"{heads:>6} {tokens:>8} {cells} {seconds[1] / seconds[0]:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
