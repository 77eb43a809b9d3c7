"""How many images a second the data pipeline decodes, and whether a training run would wait for them.

    python -m benchmarks.image_pipeline --tokenizer DIR [--megapixels 2] [--threads N] [--batches 6]

It writes JPEG files of noise laid over colours, which take the decoder longer than most photographs do, and reads
conversations about them as ``configs/sft_vision_2b.py`` does: reduced to one megapixel, 4,096 patches an image.

What that recipe uses at most: 8 v5e chips of 197 TFLOP/s train 2e9 parameters, at 6 FLOPs a parameter and token,
no faster than 131,333 tokens a second. An image of 1,024 tokens comes with text. With 300 tokens of it that is 99
images a second, and 40 at 40 % of the peak.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data_pipeline import NEEDED
from configs.sft_vision_2b import config as recipe
from qwen35_jax.command import one_line_errors
from qwen35_jax.processing import Tokenizer
from train.data.pipeline import BatchIterator, make_batches
from train.data.vision import VisionReader

_TEXT_TOKENS = 300
_NUM_FILES = 24


def write_images(folder: Path, megapixels: float) -> Path:
    """Writes JPEG files of that size, and conversations about them; returns the file of conversations."""
    rng = np.random.default_rng(0)
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    size = width, width * 3 // 4
    for number in range(_NUM_FILES):
        colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size)
        noise = rng.normal(0, 8, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(colours) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
    answer = {"role": "assistant", "content": "These are colours. " * (_TEXT_TOKENS // 4)}
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(4_000):
            content = [{"type": "image", "image": f"{number % _NUM_FILES}.jpg"}, {"type": "text", "text": "What?"}]
            file.write(json.dumps({"messages": [{"role": "user", "content": content}, answer]}) + "\n")
    return folder / "rows.jsonl"


def measure(batches: BatchIterator, count: int) -> tuple[float, float, float]:
    """Returns images a second of wall time and of CPU time, and tokens a second, after one batch to warm up."""
    next(batches)
    images, tokens = 0, batches.report()["tokens"]
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        images += sum(int(row.max()) for row in next(batches)["frames"])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return images / wall, images / cpu, (batches.report()["tokens"] - tokens) / wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a Qwen3.5 checkpoint")
    parser.add_argument("--megapixels", type=float, default=2.0, help="of each file")
    parser.add_argument("--threads", type=int, help="that decode; by default one for each core")
    parser.add_argument("--batches", type=int, default=6, help="of 8 sequences of 8,192 tokens")
    arguments = parser.parse_args()
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.from_pretrained(arguments.tokenizer)
        path, data = write_images(Path(folder), arguments.megapixels), recipe().recipe.data
        assert data.vision is not None
        vision = dataclasses.replace(data.vision, num_threads=arguments.threads)
        data = dataclasses.replace(data, path=str(path), vision=vision)
        reader = VisionReader.from_pretrained(arguments.tokenizer, vision, tokenizer)
        batches = make_batches(data, tokenizer, vision=reader)
        wall, cpu, tokens = measure(batches, arguments.batches)
        threads = arguments.threads or os.cpu_count()
        print(f"{os.cpu_count()} CPUs, {threads} threads, {arguments.megapixels:g} megapixels a file:")
        print(f"{wall:.1f} images/s, {cpu:.1f} a CPU second, {tokens:,.0f} tokens/s")
        needed = NEEDED / (1024 + _TEXT_TOKENS)
        print(f"a v5e-8 takes {needed:.0f} images/s at its peak, which keep {needed / cpu:.1f} cores busy")


if __name__ == "__main__":
    main()
