"""The vision tower on the CPU in float32, forward and forward+backward, ours against transformers on torch.

    python -m benchmarks.vision_on_cpu [--depth 4] [--rounds 3] [--repeats 3]

Both sides have a tower of the 2B's width with ``--depth`` of its 24 equal blocks and random weights, and 4,096 patches:
one image of 1,024 x 1,024 pixels, or eight images of 512 patches each. The gradient is that of every parameter. Each
side runs in a process of its own, in turn (ours, theirs, ours, ...), on two threads and with huge pages, as in
``benchmarks.against_transformers``. Printed are medians over rounds and the ratios, ours / theirs, of the time on the
clock and of the time of the processor, which other work on the machine changes less.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

GRIDS = {"one image": [(1, 64, 64)], "eight images": [(1, 16, 32), (1, 32, 16)] * 4}
KINDS = ("forward", "forward+backward")


def tower_config(depth: int):
    """The 2B's tower with other depth, and its whole configuration around a decoder of one tiny period."""
    from qwen35_jax.presets import PRESETS

    tiny = PRESETS["tiny"]
    vision = dataclasses.replace(PRESETS["2b"].vision, depth=depth)
    return dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, hidden_size=2048), vision=vision)


def pictures(layout: str) -> tuple[np.ndarray, np.ndarray]:
    grids = np.array(GRIDS[layout])
    return np.random.default_rng(0).normal(size=(grids.prod(axis=1).sum(), 1536)).astype(np.float32), grids


def time_calls(call, repeats: int) -> dict[str, float]:
    """Returns the median seconds of a call, on the clock and of the processor, after one that is not counted."""
    call()
    clock, processor = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        call()
        clock.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return {"clock": statistics.median(clock), "processor": statistics.median(processor)}


def run_ours(depth: int, repeats: int) -> dict:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from qwen35_jax.layers.parameters import Parameters
    from qwen35_jax.vision.patches import pack_patches
    from qwen35_jax.vision.tower import VisionTower

    make = Parameters(nnx.Rngs(0), jnp.float32, 0.02)
    graphdef, params = nnx.split(VisionTower(tower_config(depth).vision, dtype=jnp.float32, make=make))

    def loss(params, patches):
        return jnp.mean(jnp.sin(nnx.merge(graphdef, params, copy=True)(patches).main))

    programs = dict(zip(KINDS, (jax.jit(loss), jax.jit(jax.value_and_grad(loss))), strict=True))
    results = {}
    for layout in GRIDS:
        patches = jax.tree.map(jnp.asarray, pack_patches([pictures(layout)]))
        for kind, program in programs.items():
            results[f"{layout}, {kind}"] = time_calls(
                lambda program=program, patches=patches: jax.block_until_ready(program(params, patches)), repeats
            )
    return results


def run_theirs(depth: int, repeats: int) -> dict:
    import torch
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

    torch.set_num_threads(2)
    tower = Qwen3_5VisionModel(Qwen3_5VisionConfig(**dataclasses.asdict(tower_config(depth).vision))).float()
    results = {}
    for layout in GRIDS:
        pixels, grids = map(torch.as_tensor, pictures(layout))

        def forward(pixels=pixels, grids=grids):
            with torch.no_grad():
                return torch.sin(tower(pixels, grids).pooler_output).mean().item()

        def both(pixels=pixels, grids=grids):
            tower.zero_grad(set_to_none=True)
            torch.sin(tower(pixels, grids).pooler_output).mean().backward()

        for kind, call in zip(KINDS, (forward, both), strict=True):
            results[f"{layout}, {kind}"] = time_calls(call, repeats)
    return results


def measure(side: str, depth: int, repeats: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.vision_on_cpu", "--side", side]
    command += ["--depth", str(depth), "--repeats", str(repeats)]
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def compare(depth: int, rounds: int, repeats: int) -> None:
    results = [tuple(measure(side, depth, repeats) for side in ("ours", "theirs")) for _ in range(rounds)]
    print(f"{depth} blocks, {rounds} rounds, load {os.getloadavg()[0]:.1f}")
    for name in results[0][0]:
        for unit in ("clock", "processor"):
            ours, theirs = (statistics.median(row[side][name][unit] for row in results) for side in (0, 1))
            ratio = statistics.median(row[0][name][unit] / row[1][name][unit] for row in results)
            print(f"{name:<30} {unit:<10} ours {ours:7.2f} s   torch {theirs:7.2f} s   ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side is None:
        compare(args.depth, args.rounds, args.repeats)
    else:
        print(json.dumps((run_ours if args.side == "ours" else run_theirs)(args.depth, args.repeats)))


if __name__ == "__main__":
    main()
