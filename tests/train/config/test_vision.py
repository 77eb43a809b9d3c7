"""Settings of images and videos: which are refused, and what follows from others."""

import pytest

from train.config.vision import VisionDataConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_pixels": 100}, r"data\.vision\.max_pixels=100 is too small"),
        ({"min_pixels": 10_000, "max_pixels": 5_000}, r"min_pixels=10000 is above"),
        ({"patches_per_sequence": 1000}, r"must be a multiple of 256, such as 1024"),
        ({"patches_per_sequence": 1024}, r"lets one fill 4096 patches, but a sequence holds .*=1024"),
        (
            {"max_pixels": 4096, "video_max_pixels": 1 << 22, "patches_per_sequence": 1024},
            r"video_max_pixels=4194304 lets one fill 8192 patches",
        ),
        ({"fps": 0.0}, r"data\.vision\.fps=0\.0 must be positive"),
        ({"num_threads": 0}, r"num_threads=0 is too small"),
    ],
)
def test_settings_that_do_not_agree(fields, message):
    with pytest.raises(ValueError, match=message):
        VisionDataConfig(**fields)


@pytest.mark.parametrize(("patches", "most"), [(256, 131_072), (8192, 4_194_304), (12_288, 4_194_304)])
def test_a_video_is_as_large_as_a_sequence_allows(patches, most):
    assert VisionDataConfig(max_pixels=4096, patches_per_sequence=patches).most_video_pixels == most
