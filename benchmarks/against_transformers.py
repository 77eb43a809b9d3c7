"""Forward and forward+backward on the CPU in float32, ours against transformers on torch.

    python -m benchmarks.against_transformers [--tokens 512] [--rounds 3] [--repeats 5]

Both sides load the same random checkpoint (hidden size 1,024, 8 layers, the real vocabulary) and compute the mean
next-token loss of the same tokens, then its gradient with respect to every parameter. Each side runs in a process of
its own, in turn (ours, theirs, ours, ...), so that a machine that slows down slows both; peak memory is what the
operating system accounts to the process. Printed are medians over rounds and the ratios, ours / theirs.

Both run with huge pages: with small ones the first touch of gigabytes of fresh memory is a fifth to a quarter of the
CPU time on either side, and says nothing of their computation.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def checkpoint_config():
    """The 0.8B with 8 layers, without its vision tower's depth: text is all that is measured."""
    import dataclasses

    from qwen35_jax import PRESETS

    base = PRESETS["0.8b"]
    text = dataclasses.replace(base.text, num_hidden_layers=8, layer_types=())
    return dataclasses.replace(base, text=text, vision=dataclasses.replace(base.vision, depth=1))


def token_ids(num_tokens: int, vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (1, num_tokens))


def time_calls(call, repeats: int) -> float:
    """Returns the median seconds of a call after one that is not counted (compilation, warm-up)."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def run_ours(path: Path, num_tokens: int, repeats: int) -> dict:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import qwen35_jax
    from qwen35_jax.ops.linear_cross_entropy import linear_cross_entropy

    model = qwen35_jax.load(path, dtype="float32", vision=False)
    ids = jnp.asarray(token_ids(num_tokens, model.config.text.vocab_size))
    targets = jnp.roll(ids, -1, axis=1)
    weights = jnp.ones(ids.shape, jnp.float32).at[:, -1].set(0) / (num_tokens - 1)
    graphdef, params = nnx.split(model)
    del model

    def loss(params):
        model = nnx.merge(graphdef, params, copy=True)
        return linear_cross_entropy(model.forward(ids)[0], model.head_weight(), targets, weights, chunk_tokens=512)

    forward, backward = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    seconds = {"forward": time_calls(lambda: forward(params).block_until_ready(), repeats)}
    forward_peak = peak_bytes()
    seconds["backward"] = time_calls(lambda: jax.block_until_ready(backward(params)), repeats)
    return {"loss": float(forward(params)), **seconds, "forward_peak": forward_peak, "peak": peak_bytes()}


def run_theirs(path: Path, num_tokens: int, repeats: int) -> dict:
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    ids = torch.as_tensor(token_ids(num_tokens, model.config.text_config.vocab_size))

    @torch.no_grad()
    def forward():
        return model(input_ids=ids, labels=ids, use_cache=False).loss.item()

    def backward():
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    seconds = {"forward": time_calls(forward, repeats)}
    forward_peak = peak_bytes()
    seconds["backward"] = time_calls(backward, repeats)
    return {"loss": forward(), **seconds, "forward_peak": forward_peak, "peak": peak_bytes()}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side: str, path: Path, num_tokens: int, repeats: int) -> dict:
    options = {"tokens": num_tokens, "repeats": repeats, "side": side, "checkpoint": path}
    command = [sys.executable, "-m", "benchmarks.against_transformers"]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def compare(num_tokens: int, rounds: int, repeats: int) -> None:
    from qwen35_jax.hf.create import create_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        create_checkpoint(checkpoint_config(), path, seed=0, dtype="float32")
        results = [
            tuple(measure(side, path, num_tokens, repeats) for side in ("ours", "theirs")) for _ in range(rounds)
        ]
    ours, theirs = results[0]
    print(f"{num_tokens} tokens, {rounds} rounds; loss {ours['loss']:.5f} against {theirs['loss']:.5f}")
    units = {"forward": (1, "s"), "backward": (1, "s"), "forward_peak": (1e9, "GB"), "peak": (1e9, "GB")}
    labels = {"forward": "forward", "backward": "forward+backward", "forward_peak": "peak, forward", "peak": "peak"}
    for key, (unit, name) in units.items():
        a, b = (statistics.median(row[side][key] for row in results) / unit for side in (0, 1))
        ratio = statistics.median(row[0][key] / row[1][key] for row in results)
        print(f"{labels[key]:<18} ours {a:7.3f} {name}   transformers {b:7.3f} {name}   ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side is None:
        compare(args.tokens, args.rounds, args.repeats)
    else:
        run = run_ours if args.side == "ours" else run_theirs
        print(json.dumps(run(args.checkpoint, args.tokens, args.repeats)))


if __name__ == "__main__":
    main()
