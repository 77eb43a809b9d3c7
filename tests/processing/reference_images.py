"""What transformers' fast image processor makes of an image, also where torchvision is not installed.

The fast processor resizes with torchvision, which calls torch for tensors of bytes. So transformers' Pillow processor
with its resizing by torch gives the same, bit for bit.
"""

import functools

import numpy as np
import pytest


def torch_resize(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes [..., 3, H, W] bytes as ``torchvision.transforms.v2.functional.resize`` does on a CPU."""
    torch = pytest.importorskip("torch", reason="the reference runs on torch")
    if planes.shape[-2:] == (height, width):
        return planes
    batch = torch.from_numpy(np.ascontiguousarray(planes)).reshape(-1, *planes.shape[-3:])
    resized = torch.nn.functional.interpolate(
        batch, size=[height, width], mode="bicubic", align_corners=False, antialias=True
    )
    return resized.reshape(*planes.shape[:-2], height, width).numpy()


@functools.cache
def fast_processor(min_pixels: int = 65_536, max_pixels: int = 16_777_216):
    """Builds the processor with the published settings, or other limits."""
    hf = pytest.importorskip(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", reason="compares with transformers"
    )

    class FastProcessor(hf.Qwen2VLImageProcessorPil):
        def resize(self, image, size, resample, factor, **_):
            height, width = hf.smart_resize(*image.shape[-2:], factor, size.shortest_edge, size.longest_edge)
            return torch_resize(image, height, width)

    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return FastProcessor(size=size, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def reference_patches(image, **limits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the float32 patches and the grid of one Pillow image."""
    made = fast_processor(**limits)([image], return_tensors="np")
    return made["pixel_values"], made["image_grid_thw"][0]
