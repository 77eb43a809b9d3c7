"""Drawn images, and a tokenizer whose template shows them."""

import io
import shutil

import numpy as np
from PIL import Image

from tests.conftest import PUBLISHED


def drawn(height, width, seed=0):
    """Returns an image of random colours, as Pillow has it."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)


def as_png(image):
    """Returns the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def show_images(folder):
    """Puts the published chat template, which shows images, into a tokenizer's folder."""
    shutil.copy(PUBLISHED / "chat_template_2b_and_below.jinja", folder / "chat_template.jinja")
    return folder
