"""A tiny checkpoint that sees images, and conversations about drawn images."""

import dataclasses
import json

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.processing import Tokenizer
from tests.processing.conftest import TEXTS
from tests.train.conftest import small_config
from tests.train.data.pictures import drawn, show_images
from train.config import (
    DataConfig,
    ModelSource,
    MtpLossConfig,
    OptimConfig,
    Recipe,
    Supervised,
    VisionDataConfig,
)

VISION = VisionDataConfig(
    max_pixels=64 * 64, min_pixels=32 * 32, video_max_pixels=2 * 64 * 64, patches_per_sequence=256, num_threads=2
)
LENGTH = 160
OBJECTIVE = Supervised(MtpLossConfig(weight=0.3))


def write_inputs(folder):
    """Writes a checkpoint that sees images, ``base``, and conversations about drawn images, ``train.jsonl``."""
    tokenizer = show_images(build_tiny_tokenizer(TEXTS, folder / "tokenizer", vocab_size=400))
    known = Tokenizer.from_pretrained(tokenizer)
    tokens = {f"{kind}_token_id": known.token_id(f"<|{kind}_pad|>") for kind in ("image", "video")}
    config = dataclasses.replace(small_config(), **tokens)
    create_checkpoint(config, folder / "base", seed=0, dtype="float32", tokenizer_from=tokenizer)
    rows = []
    for number in range(12):
        shown = []
        for place in range(number % 3):
            shown.append(f"{number}_{place}.png")
            drawn(32 + 16 * (number % 3), 32 + 32 * place, seed=number + place).save(folder / shown[-1])
        content = [{"type": "image"} for _ in shown] + [{"type": "text", "text": f"What is number {number}?"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": f"It is {number}."}]
        rows.append({"messages": messages, "images": shown})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(inputs, **fields):
    """Returns a short run on these inputs."""
    data = DataConfig(
        str(inputs / "train.jsonl"), LENGTH, sequences_per_batch=2, vision=VISION, num_threads=2, open_sequences=2
    )
    settings = {"data": data, "steps": 6, "objective": OBJECTIVE, "optim": OptimConfig(learning_rate=1e-3, warmup=0.0)}
    return Recipe(ModelSource(str(inputs / "base")), **{**settings, **fields})
