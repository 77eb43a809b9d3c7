"""Resizing against torch, byte for byte."""

import numpy as np
import pytest

from qwen35_jax.processing.resize import resize_bicubic
from tests.processing.reference_images import torch_resize

# The extremes: noise that overshoots at every edge, and pictures of one row or column.
SIZES = [
    (1, 1, 256, 256),
    (1, 200, 32, 3648),
    (300, 2, 96, 32),
    (33, 47, 64, 64),
    (700, 500, 32, 64),
    (64, 96, 64, 128),
    (64, 96, 128, 96),
    (64, 96, 64, 96),
    (1000, 3, 32, 32),
]


@pytest.mark.parametrize(("height", "width", "new_height", "new_width"), SIZES)
@pytest.mark.parametrize("extreme", [False, True])
def test_every_byte_is_torchs(height, width, new_height, new_width, extreme):
    rng = np.random.default_rng(height + width)
    image = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    image = np.where(image > 127, 255, 0).astype(np.uint8) if extreme else image
    want = torch_resize(image.transpose(2, 0, 1), new_height, new_width)
    np.testing.assert_array_equal(resize_bicubic(image, new_height, new_width), want)


def test_random_sizes_are_torchs():
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(1, 400, size=2).tolist()
        new_height, new_width = (32 * rng.integers(1, 9, size=2)).tolist()
        image = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
        want = torch_resize(image.transpose(2, 0, 1), new_height, new_width)
        np.testing.assert_array_equal(resize_bicubic(image, new_height, new_width), want)
