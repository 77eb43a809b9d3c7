"""The settings of the images and videos in training data."""

from dataclasses import dataclass, field

from train.objectives.checks import check_finite

# Pixels of a patch, and of the two frames that a patch of a video covers.
_PATCH, _VIDEO_PATCH = 16 * 16, 2 * 16 * 16
# What TPU kernels cut without a rest.
_STEP = 256
_VIDEO_PIXELS = 4_194_304


@dataclass(frozen=True, kw_only=True)
class VisionDataConfig:
    """How images and videos of conversations are read, and how many of them fit into a sequence.

    A patch has 16 x 16 pixels, in a video those of two frames. Four patches become one token.
    """

    max_pixels: int = 1_048_576
    """Most pixels of an image, to which larger ones are reduced: 1,048,576 give 4,096 patches, which are 1,024
    tokens."""

    min_pixels: int | None = None
    """Fewest pixels of an image, to which smaller ones are enlarged; None takes the checkpoint's (65,536), or
    ``max_pixels`` where that is less."""

    video_max_pixels: int | None = None
    """Most pixels of all chosen frames of a video together; None takes 4,194,304, which give 8,192 patches, 2,048
    tokens, or what a sequence holds where that is less."""

    fps: float = 2.0
    """Frames chosen from a second of video."""

    max_frames: int = 768
    """Most frames chosen from a video."""

    patches_per_sequence: int = 12_288
    """Patches in one packed sequence. Each sequence of a batch holds as many, whether they are filled or not."""

    folder: str | None = field(default=None, compare=False)
    """Folder that the paths of images and videos are relative to, also in a bucket; None takes that of each data
    file."""

    allow_urls: bool = field(default=False, compare=False)
    """Fetch images and videos from the internet where a row gives an address."""

    num_threads: int | None = field(default=None, compare=False)
    """Threads that decode images and videos ahead of training; None takes one for each core, 32 at most."""

    def __post_init__(self) -> None:
        check_finite(self, "data.vision.")
        least = {"max_pixels": 32 * 32, "min_pixels": 1, "video_max_pixels": 2 * 32 * 32, "max_frames": 2}
        for name, value in least.items():
            if getattr(self, name) is not None and getattr(self, name) < value:
                raise ValueError(f"data.vision.{name}={getattr(self, name)} is too small; it must be at least {value}.")
        if self.min_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"data.vision.min_pixels={self.min_pixels} is above data.vision.max_pixels={self.max_pixels}; lower it."
            )
        if not self.fps > 0:
            raise ValueError(f"data.vision.fps={self.fps} must be positive.")
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"data.vision.num_threads={self.num_threads} is too small; it must be at least 1.")
        capacity = self.patches_per_sequence
        if capacity < 1 or capacity % _STEP:
            raise ValueError(
                f"data.vision.patches_per_sequence={capacity} must be a multiple of {_STEP}, such as "
                f"{-(-max(capacity, 1) // _STEP) * _STEP}."
            )
        for name, most, pixels in (
            ("max_pixels", self.max_pixels, _PATCH),
            ("video_max_pixels", self.most_video_pixels, _VIDEO_PATCH),
        ):
            if (needed := most // pixels) > capacity:
                raise ValueError(
                    f"data.vision.{name}={most} lets one fill {needed} patches, but a sequence holds "
                    f"data.vision.patches_per_sequence={capacity}; lower the one or raise the other."
                )

    @property
    def most_video_pixels(self) -> int:
        """``video_max_pixels``, or what None stands for."""
        if self.video_max_pixels is None:
            return min(_VIDEO_PIXELS, self.patches_per_sequence * _VIDEO_PATCH)
        return self.video_max_pixels
