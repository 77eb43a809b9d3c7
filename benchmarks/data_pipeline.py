"""How many tokens a second the data pipeline makes, and whether a training run would wait for it.

    python -m benchmarks.data_pipeline --tokenizer DIR [--data FILE.jsonl] [--threads 4] [--batches 20]

What a run can use at most: LoRA with recomputation costs at least 6 FLOPs per parameter and token (2 forward, 2 again
for the backward pass, 2 for the gradients of the activations; attention comes on top), so 2e9 parameters on 8 v5e chips
of 197 TFLOP/s take no more than 8 * 197e12 / (6 * 2e9) = 131,333 tokens a second. That is with every chip at its peak
all the time; at 40 % of it, which is a good run, it is 53,000.

Printed are the rate without a consumer, in wall time and for each CPU second used, and then how long a device waits
that takes a batch as often as those chips could; the host sleeps while it does. Without
``--data`` the conversations are made of random words: about 1,000 tokens, a third of them reasoning.

With the tokenizer of Qwen3.5-2B, on two cores that other work kept busy too, so only CPU seconds count: 417,000
tokens a CPU second for those conversations, 196,000 for GSM8K's of 165 tokens each. About half of what remains is the
tokenizer's own work in Rust, without Python's lock; rendering comes next, 0.2 ms a conversation, with it. At a device
that takes 131,333 a second, conversations of 1,000 tokens never made it wait; GSM8K's made it wait between 0 % and 56 %
of the time, depending on what else the two cores did.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

from qwen35_jax.command import one_line_errors
from qwen35_jax.processing import Tokenizer
from train.config.data import DataConfig
from train.data.pipeline import BatchIterator, make_batches

PARAMETERS, FLOPS_PER_PARAMETER = 2e9, 6
CHIPS, PEAK_FLOPS = 8, 197e12
NEEDED = CHIPS * PEAK_FLOPS / (PARAMETERS * FLOPS_PER_PARAMETER)
"""Tokens a second that the roofline allows."""


def write_conversations(path: Path, count: int) -> None:
    """Writes conversations of random words in the frequencies of a natural text (Zipf's law)."""
    rng = random.Random(0)
    syllables = [a + b for a in ("b", "d", "f", "l", "m", "n", "r", "s", "t", "st", "pr", "th") for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.choice([1, 1, 2, 2, 3]))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]

    def text(length: int) -> str:
        said = rng.choices(words, weights, k=length)
        return " ".join(f"{word}." if number % 12 == 11 else word for number, word in enumerate(said))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            size = min(int(rng.lognormvariate(4.6, 0.6)), 600)
            answer = {"role": "assistant", "reasoning_content": text(size), "content": text(size)}
            file.write(json.dumps({"messages": [{"role": "user", "content": text(size)}, answer]}) + "\n")


def measure_rate(batches: BatchIterator, count: int) -> tuple[float, float]:
    """Returns tokens a second of wall time and of CPU time, over ``count`` batches after one to warm up."""
    next(batches)
    before, wall, cpu = batches.report()["tokens"], time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)
    tokens = batches.report()["tokens"] - before
    return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)


def measure_waiting(batches: BatchIterator, count: int, step_seconds: float) -> float:
    """Returns the share of its time that a device waits which takes ``step_seconds`` for a batch.

    As in the training loop, the host fetches the next batch while the device computes, and runs one step ahead of it.
    """
    next(batches)
    waited, began = 0.0, time.perf_counter()
    free_at = began + step_seconds
    for _ in range(count):
        next(batches)
        now = time.perf_counter()
        waited += max(0.0, now - free_at)
        starts_at = max(now, free_at)
        free_at = starts_at + step_seconds
        time.sleep(starts_at - now)
    return waited / (free_at - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a Qwen3.5 checkpoint")
    parser.add_argument("--data", type=Path, help="JSONL or Parquet to read instead of random words")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--batches", type=int, default=20, help="of 32 rows of 4,096 tokens")
    arguments = parser.parse_args()
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.from_pretrained(arguments.tokenizer)
        path = arguments.data or Path(folder, "random.jsonl")
        if arguments.data is None:
            write_conversations(path, 20_000)
        config = DataConfig(
            str(path), sequence_length=4096, sequences_per_batch=32, num_threads=arguments.threads, bad_rows="drop"
        )
        began = time.perf_counter()
        batches = make_batches(config, tokenizer)
        print(
            f"opened and checked {path.name} ({path.stat().st_size / 1e6:.0f} MB): {time.perf_counter() - began:.1f} s"
        )
        wall, cpu = measure_rate(batches, arguments.batches)
        print(f"{os.cpu_count()} CPUs, {arguments.threads} threads: {wall:,.0f} tokens/s, {cpu:,.0f} a CPU second")
        print(f"2B LoRA on v5e-8 needs {NEEDED:,.0f} tokens/s at the roofline; the pipeline makes {wall / NEEDED:.1f}x")
        seconds = 32 * 4096 / NEEDED
        waiting = measure_waiting(batches, arguments.batches, seconds)
        print(f"a device that takes a batch every {seconds:.2f} s waits {waiting:.2%} of its time")
        print(f"packing: {batches.report()['packing_efficiency']:.4f} of the positions hold a token")


if __name__ == "__main__":
    main()
