"""How images and videos become patches: the sizes that a checkpoint's files hold.

Source: ``preprocessor_config.json`` and ``video_preprocessor_config.json`` of the published checkpoints. Their
``shortest_edge`` and ``longest_edge`` are numbers of pixels, and no edges.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from qwen35_jax.processing.media import MediaError

# What the arithmetic here takes for granted.
_FIXED = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}

_EDGES = {"shortest_edge", "longest_edge"}
_LEAST_FPS, _MOST_FPS = 1e-6, 1e6

# Keys of qwen-vl-utils, which would change what the model sees.
_UNSUPPORTED = {
    "nframes": "write num_frames",
    "resized_height": "give min_pixels and max_pixels",
    "resized_width": "give min_pixels and max_pixels",
    "video_start": "cut the video",
    "video_end": "cut the video",
}
_KNOWN = (
    "min_pixels", "max_pixels", "total_pixels", "fps", "raw_fps", "sample_fps", "num_frames", "min_frames",
    "max_frames",
)  # fmt: skip
# Of a video's file, what is not about the size of pictures.
_ABOUT_FRAMES = ("fps", "min_frames", "max_frames", "num_frames", "cap_pixels_per_frame", "max_video_tokens")
# How alike a key must be to one of these to count as mistyped. Other keys are somebody's metadata.
_ALIKE = 0.9


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How images become patches; the defaults are those of all published sizes.

    Attributes:
      patch_size: side of a patch in pixels.
      temporal_patch_size: pictures in a patch; an image is repeated so often.
      merge_size: side of the square of patches that become one token.
      min_pixels, max_pixels: an image is enlarged or reduced so far that its area lies between them.
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 65_536
    max_pixels: int = 16_777_216

    def __post_init__(self):
        _check_limits(self)

    @property
    def factor(self) -> int:
        """Pixels of a token's side, of which every side is a multiple."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str = "preprocessor_config.json") -> "ImageSettings":
        """Reads the content of ``preprocessor_config.json``, or ``image_processor`` of ``processor_config.json``.

        Raises:
          ValueError: it asks for something that Qwen3.5 does not do.
        """
        return cls(**_read_settings(config, where))

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``preprocessor_config.json``."""
        return _written(self) | {"image_processor_type": "Qwen2VLImageProcessorFast"}

    def limited(self, options: Mapping[str, Any]) -> "ImageSettings":
        """Returns the settings for one image of a conversation, whose item may hold ``min_pixels``, ``max_pixels``.

        Raises:
          MediaError: a limit is no whole number, or beyond those of these settings.
        """
        options = _given(options)
        high = _whole(options, "max_pixels", self.max_pixels) if "max_pixels" in options else self.max_pixels
        # An item that only lowers the most may lower it below the least.
        low = _whole(options, "min_pixels", self.max_pixels) if "min_pixels" in options else min(self.min_pixels, high)
        if low > high:
            raise MediaError(f"min_pixels={low} of an image is above its max_pixels={high}; lower min_pixels.")
        return dataclasses.replace(self, min_pixels=low, max_pixels=high)


@dataclasses.dataclass(frozen=True)
class VideoSettings:
    """How videos become patches; the defaults are those of all published sizes.

    Attributes:
      patch_size, merge_size: as for images.
      temporal_patch_size: frames in a patch; where the last patch lacks one, it holds the last frame twice.
      min_pixels, max_pixels: the pixels of all chosen frames together lie between them.
      fps: frames chosen from a second of video.
      min_frames, max_frames: the fewest (of what the video has) and the most frames chosen.
      num_frames: frames chosen, whatever the length; None for ``fps``.
      max_frame_pixels, min_frame_pixels: limits of each frame besides; None for none.
      cap_pixels_per_frame: limit each frame to ``max_video_tokens`` tokens besides, as qwen-vl-utils does and the
        published files do not.
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 4_096
    max_pixels: int = 25_165_824
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    num_frames: int | None = None
    min_frame_pixels: int | None = None
    max_frame_pixels: int | None = None
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 768

    def __post_init__(self):
        _check_limits(self)
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames={self.min_frames} is above max_frames={self.max_frames}; lower min_frames.")

    @property
    def factor(self) -> int:
        """Pixels of a token's side, of which every side is a multiple."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str = "video_preprocessor_config.json") -> "VideoSettings":
        """Reads the content of ``video_preprocessor_config.json``, or ``video_processor`` of ``processor_config.json``.

        Raises:
          ValueError: it asks for something that Qwen3.5 does not do.
        """
        if config.get("do_sample_frames") is False:
            raise ValueError(f"{where}: do_sample_frames=False is not supported; give sample_fps with lists of frames.")
        found: dict[str, Any] = _read_settings(config, where)
        for name in _ABOUT_FRAMES:
            value = config.get(name)
            if value is None:
                continue
            kinds = {"fps": (int, float), "cap_pixels_per_frame": bool}.get(name, int)
            if not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool):
                raise ValueError(f"{where}: {name}={value!r} is no {'boolean' if kinds is bool else 'number'}.")
            found[name] = value
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``video_preprocessor_config.json``. What is as in the published one is not named."""
        usual = VideoSettings()
        other = {name: getattr(self, name) for name in _ABOUT_FRAMES if getattr(self, name) != getattr(usual, name)}
        return _written(self) | {"video_processor_type": "Qwen3VLVideoProcessor"} | other

    def limited(self, options: Mapping[str, Any]) -> "VideoSettings":
        """Returns the settings for one video of a conversation.

        Its item may hold ``fps`` or ``num_frames``, ``min_frames`` and ``max_frames``; ``total_pixels`` of all chosen
        frames; and ``min_pixels`` and ``max_pixels`` of each. Each may be below what these settings allow, not above.

        Raises:
          MediaError: a value is none of these, or the item asks for what is not supported.
        """
        options = _given(options)
        changes: dict[str, Any] = {}
        fps = options.get("fps")
        if fps is not None:
            changes |= {"fps": positive("fps", fps), "num_frames": None}
        for name in ("num_frames", "min_frames", "max_frames"):
            if name in options:
                changes[name] = _whole(options, name, self.max_frames)
        if "max_frames" in changes:
            changes.setdefault("min_frames", min(self.min_frames, changes["max_frames"]))
        if fps is not None and changes.get("num_frames"):
            raise MediaError(f"a video has fps={fps} and num_frames={changes['num_frames']}; give one of them.")
        if "total_pixels" in options:
            changes["max_pixels"] = _whole(options, "total_pixels", self.max_pixels)
            changes["min_pixels"] = min(self.min_pixels, changes["max_pixels"])
        for name in ("min_pixels", "max_pixels"):
            if name in options:
                changes[name.replace("_", "_frame_")] = _whole(options, name, self.max_pixels)
        try:
            return dataclasses.replace(self, **changes)
        except ValueError as err:
            raise MediaError(f"a video: {err}") from err


def _check_limits(settings: "ImageSettings | VideoSettings") -> None:
    """Raises ``ValueError`` where the sizes of the settings of images or videos are not as they must be."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is not None and not isinstance(value, bool) and not value > 0:
            raise ValueError(f"{field.name}={value} must be positive.")
    if settings.min_pixels > settings.max_pixels:
        raise ValueError(
            f"min_pixels={settings.min_pixels} is above max_pixels={settings.max_pixels}; lower min_pixels."
        )


def _whole(options: Mapping[str, Any], name: str, most: int) -> int:
    value = options[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise MediaError(f"{name}={value!r} of an image or video must be a whole number from 1 to {most}.")
    return value


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that have a value."""
    given = {name: value for name, value in options.items() if value is not None}
    for name, instead in _UNSUPPORTED.items():
        if name in given:
            raise MediaError(f"{name} of an image or video is not supported; {instead}.")
    for name in given:
        if name not in _KNOWN and (alike := difflib.get_close_matches(str(name), _KNOWN, n=1, cutoff=_ALIKE)):
            raise MediaError(f"{name} of an image or video is not known; write {alike[0]}, or leave it out.")
    return given


def positive(name: str, value: Any) -> float:
    """Returns a rate that an item of a conversation gives.

    Raises:
      MediaError: it is no number, or no such rate.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _LEAST_FPS <= value <= _MOST_FPS:
        raise MediaError(f"{name}={repr(value)[:40]} of a video must be a number from {_LEAST_FPS:g} to {_MOST_FPS:g}.")
    return float(value)


def _written(settings: "ImageSettings | VideoSettings") -> dict[str, Any]:
    """Returns what the files of images and of videos both hold, as the published ones write it."""
    return {
        "size": {"longest_edge": settings.max_pixels, "shortest_edge": settings.min_pixels},
        "patch_size": settings.patch_size,
        "temporal_patch_size": settings.temporal_patch_size,
        "merge_size": settings.merge_size,
        "image_mean": _FIXED["image_mean"],
        "image_std": _FIXED["image_std"],
        "processor_class": "Qwen3VLProcessor",
    }


def _read_settings(config: Mapping[str, Any], where: str) -> dict[str, int]:
    """Returns the sizes that a processor's file holds, by the names of ``ImageSettings`` and ``VideoSettings``.

    Raises:
      ValueError: it asks for something else than Qwen3.5's processors do, or a size is no whole number.
    """
    for name, only in _FIXED.items():
        value = config.get(name)
        if value is not None and value != only:
            raise ValueError(f"{where}: {name}={value!r} is not supported; Qwen3.5's processors have {only!r}.")
    size = config.get("size") or {}
    if not isinstance(size, Mapping) or {key for key, value in size.items() if value is not None} - _EDGES:
        raise ValueError(f"{where}: size={size!r} must be an object with shortest_edge and longest_edge alone.")
    found = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    for name in ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels"):
        if config.get(name) is not None:
            found[name] = config[name]
    for name, value in found.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"{where}: {name}={value!r} must be a whole number.")
    return {name: value for name, value in found.items() if value is not None}
