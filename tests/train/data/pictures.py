"""Drawn images and videos, conversations about them, and what their batches hold."""

import io
import shutil

import numpy as np
from PIL import Image

from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from tests.conftest import PUBLISHED
from train.config.data import DataConfig
from train.config.vision import VisionDataConfig
from train.data.pipeline import make_batches
from train.data.vision import VisionReader

VISION = VisionDataConfig(
    max_pixels=96 * 96, min_pixels=32 * 32, video_max_pixels=2 * 96 * 96, patches_per_sequence=256, num_threads=2
)
IMAGE = ImageSettings(min_pixels=32 * 32, max_pixels=96 * 96)
USER, ANSWER = {"role": "user"}, {"role": "assistant", "content": "It is red."}


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


def as_video(path, frames, fps=4):
    """Writes frames of one size as an MP4 file."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height = frames[0].size
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def batches(path, tokenizer, *, vision=VISION, **settings):
    """Opens one epoch of data in small batches."""
    small = {"sequence_length": 160, "sequences_per_batch": 2, "open_sequences": 3, "num_threads": 2, "epochs": 1}
    config = DataConfig(str(path), vision=vision, **{**small, **settings})
    reader = VisionReader(vision, ImageSettings(), VideoSettings(), tokenizer)
    return make_batches(config, tokenizer, vision=reader)


def part(**fields):
    """Returns a part that is an image."""
    return {"type": "image", **fields}


def text(words):
    """Returns a part of words."""
    return {"type": "text", "text": words}


def asks(*content):
    """Returns a conversation of one question."""
    return {"messages": [USER | {"content": list(content)}, ANSWER]}


def documents(found, tokenizer):
    """Yields what each document of some batches consists of: ids, trained, positions and its patches."""
    known = pads(tokenizer).values()
    for batch in found:
        for row, segments in enumerate(batch["segment_ids"]):
            start = 0
            for segment in range(1, segments.max() + 1):
                mine = segments == segment
                ids = batch["input_ids"][row, mine]
                count = int(np.isin(ids, [*known]).sum())
                patches = batch["pixels"][row, start : start + 4 * count]
                start += 4 * count
                yield ids, batch["trained"][row, mine], batch["positions"][row, mine], patches
            assert not batch["pixels"][row, start:].any() and not batch["frames"][row, start:].any()
            assert (batch["frames"][row, :start] > 0).all()


def pads(tokenizer):
    """Returns the ids that stand for images and videos, as arguments of ``mrope_positions``."""
    return {f"{kind}_token": tokenizer.token_id(f"<|{kind}_pad|>") for kind in ("image", "video")}
