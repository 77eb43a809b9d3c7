"""Token ids with images and videos in them, their patches, and the same inputs as transformers takes them."""

from typing import NamedTuple

import numpy as np

from qwen35_jax.config import ModelConfig


class Mix(NamedTuple):
    """One sequence: ids [1, T], pixels [P, C], grids [n, 3] in reading order."""

    input_ids: np.ndarray
    pixels: np.ndarray
    grids: np.ndarray


def make_mix(config: ModelConfig, parts, seed=0) -> Mix:
    """Makes a sequence of random tokens (a number) and pictures (a grid; videos are those of several frames)."""
    rng = np.random.default_rng(seed)
    vision = config.vision
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    ids, pixels, grids = [], [np.zeros((0, width), np.float32)], []
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(0, 400, part).tolist()
            continue
        frames, rows, columns = part
        tokens = rows * columns // 4
        for _ in range(frames):  # as a processor writes videos: text, then the tokens of a frame
            ids += rng.integers(0, 400, 1).tolist()
            ids += [config.image_token_id if frames == 1 else config.video_token_id] * tokens
        pixels.append(rng.normal(size=(frames * rows * columns, width)).astype(np.float32))
        grids.append(part)
    return Mix(np.array([ids]), np.concatenate(pixels), np.array(grids, np.int32).reshape(-1, 3))


def torch_inputs(config: ModelConfig, mix: Mix) -> dict:
    """Sorts images from videos, as transformers takes them."""
    import torch

    is_video = mix.grids[:, 0] > 1
    parts = np.split(mix.pixels, np.cumsum(mix.grids.prod(axis=1))[:-1])
    kinds = np.select([mix.input_ids == config.image_token_id, mix.input_ids == config.video_token_id], [1, 2])
    inputs = {"input_ids": mix.input_ids, "mm_token_type_ids": kinds}
    for wanted, pixels, grids in (
        (False, "pixel_values", "image_grid_thw"),
        (True, "pixel_values_videos", "video_grid_thw"),
    ):
        if (is_video == wanted).any():
            inputs[pixels] = np.concatenate(
                [part for part, kind in zip(parts, is_video, strict=True) if kind == wanted]
            )
            inputs[grids] = mix.grids[is_video == wanted].astype(np.int64)
    return {name: torch.as_tensor(value) for name, value in inputs.items()}
