"""How long photographs take to become patches, beside transformers' fast image processor.

    python -m benchmarks.preprocessing [--photographs 100] [--together 4]

Both sides read JPEG files of 4 megapixels (2448x1640, quality 90) from a disk and end with float32 patches. The
photographs are made by script: noise of all scales, so that a file has the size of a camera's. Several go through in
one call, as in a conversation. transformers decodes with torchvision (``files``) or is given Pillow's images
(``Pillow``); the comparison is with the faster of the two. Bytes are what training keeps. The sides take turns, so that
other work on the machine slows both; of each the sum of all calls is printed. The first call checks that the patches
are equal.

With torch 2.13.0 and torchvision 0.28.0, on two cores that other work kept busy too: 100 photographs took transformers
40.3 s (17.2 CPU seconds) from files and 46.9 s from Pillow; ours 25.3 s (10.0 CPU seconds), or 0.63x, as float32, and
18.1 s (6.5 CPU seconds), or 0.45x, as bytes. An earlier run gave 0.65x and 0.45x; one of 16 photographs 0.62x, and one
by one 0.74x.

It needs torchvision, whose build must be that of torch (``pip install torchvision==0.28.0`` for torch 2.13.0).
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.command import one_line_errors
from qwen35_jax.processing import Processor, Tokenizer
from qwen35_jax.processing.processor import Media, VisionItem, join_pixels

# No multiples of 32, so that they are resized.
HEIGHT, WIDTH = 1640, 2448


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Writes JPEG files of noise with the spectrum of a photograph: a finer scale adds less."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for step in (1, 2, 4, 16, 64, 256):
            coarse = rng.normal(0, 4 * step**0.4, size=(HEIGHT // step + 2, WIDTH // step + 2, 3)).astype(np.float32)
            size = (coarse.shape[1] * step, coarse.shape[0] * step)
            layers = [
                Image.fromarray(coarse[..., channel]).resize(size, Image.Resampling.BILINEAR) for channel in range(3)
            ]
            picture += np.stack([np.asarray(layer)[:HEIGHT, :WIDTH] for layer in layers], axis=-1)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(np.clip(picture + 128, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def sides(processor: Processor) -> dict[str, Callable[[list[Path]], np.ndarray]]:
    """Returns what is compared; each turns the files of one call into patches.

    Raises:
      ValueError: torchvision is absent, or built for another torch.
    """
    try:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    # A build for another torch raises a RuntimeError.
    except (ImportError, RuntimeError) as err:
        raise ValueError(f"torchvision cannot be imported ({err}); install the build that belongs to torch.") from err
    fast = Qwen2VLImageProcessor(
        size={"shortest_edge": processor.image.min_pixels, "longest_edge": processor.image.max_pixels},
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )

    def items(paths: list[Path]) -> list[VisionItem]:
        return processor.items([Media("image", path, {}) for path in paths])

    def files(paths: list[Path]) -> np.ndarray:
        return fast(fast.fetch_images([str(path) for path in paths]), return_tensors="np")["pixel_values"]

    def pillow(paths: list[Path]) -> np.ndarray:
        return fast([Image.open(path) for path in paths], return_tensors="np")["pixel_values"]

    return {
        "transformers, files": files,
        "transformers, Pillow": pillow,
        "qwen35_jax, float32": lambda paths: join_pixels(items(paths)),
        "qwen35_jax, bytes": lambda paths: np.concatenate([item.patches for item in items(paths)]),
    }


def compare(photographs: int, together: int) -> None:
    """Lets the sides take turns, and prints the seconds of each and their ratio to the faster reference."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build_tiny_tokenizer(["a photograph"] * 4, Path(folder) / "tokenizer", vocab_size=300)
        compared = sides(Processor(Tokenizer.from_pretrained(tokenizer)))
        paths = write_photographs(Path(folder), photographs)
        print(f"{photographs} files of {np.mean([path.stat().st_size for path in paths]) / 1e6:.2f} MB on average")
        seconds, cpu = dict.fromkeys(compared, 0.0), dict.fromkeys(compared, 0.0)
        for first in range(-together, photographs, together):
            call = paths[max(first, 0) :][:together]
            made = {}
            for name, side in compared.items():
                began, began_cpu = time.perf_counter(), time.process_time()
                patches = side(call)
                # The call before the first warms up.
                if first >= 0:
                    seconds[name] += time.perf_counter() - began
                    cpu[name] += time.process_time() - began_cpu
                else:
                    made[name] = patches
                del patches
            if first < 0:
                np.testing.assert_array_equal(made["qwen35_jax, float32"], made["transformers, Pillow"])
    fastest = min(value for name, value in seconds.items() if name.startswith("transformers"))
    for name, value in seconds.items():
        rate = f"{photographs / value:6.1f} a second {value / fastest:5.2f}x"
        print(f"{name:22} {value:7.2f} s {cpu[name]:7.2f} CPU s {rate}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the time that photographs take to become patches.")
    parser.add_argument("--photographs", type=int, default=100)
    parser.add_argument("--together", type=int, default=4, help="photographs in one call")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    compare(args.photographs, args.together)


if __name__ == "__main__":
    with one_line_errors():
        main()
