"""Reads the images and videos of conversations: their sizes when a document is tokenised, their patches later.

How long a document is follows from the size of its images, and an image's header holds that. So documents are measured
and packed without decoding one image. The patches are made by threads, ahead of the step (`train.data.shards`), and
stay bytes until they are on the device.
"""

import contextlib
import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from qwen35_jax.config import ModelConfig
from qwen35_jax.processing import Tokenizer
from qwen35_jax.processing.image import decode_image, image_grid, image_patches, image_size
from qwen35_jax.processing.media import MediaError, MediaPolicy, Opened, describe, open_media
from qwen35_jax.processing.processor import PADS, Processor
from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from qwen35_jax.processing.video import (
    UNKNOWN_FPS,
    are_frames,
    choose_frames,
    cut_frames,
    decode_video,
    frame_size,
    load_video,
    sample_frames,
    timestamps,
    video_header,
)
from qwen35_jax.vision.mrope import mrope_positions
from qwen35_jax.vision.patches import patch_places
from train.batch import Fields, HostBatch, vision_fields
from train.config.vision import VisionDataConfig
from train.data.content import content_of
from train.data.masking import Example, Rendered
from train.data.pictures import Grid, Picture
from train.data.rows import Media, RowError

_PLACE = re.compile(r"<\|vision_start\|><\|(image|video)_pad\|><\|vision_end\|>")
_MOST_THREADS = 32


class VisionReader:
    """Makes the pictures of documents, and the arrays of batches from them."""

    def __init__(self, settings: VisionDataConfig, image: ImageSettings, video: VideoSettings, tokenizer: Tokenizer):
        """Takes the settings of a run, and those of the checkpoint's processor.

        Raises:
          ValueError: the tokenizer lacks the tokens that stand for images and videos.
        """
        least = min(image.min_pixels, settings.max_pixels) if settings.min_pixels is None else settings.min_pixels
        self._image = dataclasses.replace(image, max_pixels=settings.max_pixels, min_pixels=least)
        self._video = dataclasses.replace(
            video,
            max_pixels=settings.most_video_pixels,
            min_pixels=min(video.min_pixels, settings.most_video_pixels),
            fps=settings.fps,
            max_frames=settings.max_frames,
            min_frames=min(video.min_frames, settings.max_frames),
        )
        self.settings = settings
        self._pads = tokenizer.token_id(PADS["image"]), tokenizer.token_id(PADS["video"])
        self._policy = MediaPolicy(allow_urls=settings.allow_urls)
        image_patch = 3 * image.temporal_patch_size * image.patch_size**2
        self.fields: Fields = vision_fields(settings.patches_per_sequence, image_patch)

    @classmethod
    def from_pretrained(cls, folder: Path, settings: VisionDataConfig, tokenizer: Tokenizer) -> "VisionReader":
        """Reads the settings of a checkpoint's processor.

        Raises:
          ValueError: they cannot be read, or ask for what Qwen3.5 does not do.
        """
        processor = Processor.from_pretrained(folder)
        return cls(settings, processor.image, processor.video, tokenizer)

    def check_model(self, model: ModelConfig, folder: Path) -> None:
        """Checks that a model reads the patches that are made, in the place of the same tokens.

        Raises:
          ValueError: it has no tower, or one that reads others.
        """
        tower = model.vision
        if tower is None:
            raise ValueError(
                f"{folder} has no vision tower, so that data.vision has no use; leave it out, or start from a "
                "checkpoint that reads images."
            )
        made = (self._image.patch_size, self._image.temporal_patch_size, self._image.merge_size)
        read = (tower.patch_size, tower.temporal_patch_size, tower.spatial_merge_size)
        if made != read:
            raise ValueError(
                f"{folder}: the processor makes patches of patch_size, temporal_patch_size and merge_size {made}, but "
                f"the vision tower of config.json reads {read}; take both files of one checkpoint."
            )
        if self._pads != (model.image_token_id, model.video_token_id):
            raise ValueError(
                f"{folder}: the ids of {' and '.join(PADS.values())} are {self._pads} in the tokenizer, but "
                f"{(model.image_token_id, model.video_token_id)} in config.json; take both files of one checkpoint."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the patches of an image or a video, and how many share a sequence."""
        return {
            "image": dataclasses.asdict(self._image),
            "video": dataclasses.asdict(self._video),
            "patches_per_sequence": self.settings.patches_per_sequence,
        }

    @cached_property
    def executor(self) -> ThreadPoolExecutor:
        """The threads that decode."""
        threads = self.settings.num_threads or min(os.cpu_count() or 1, _MOST_THREADS)
        return ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def open(self, media: Sequence[Media], folder: Path | str) -> list[Picture]:
        """Finds out how large images and videos are.

        Args:
          folder: where relative paths start, or its address, unless the settings name a folder.

        Raises:
          RowError: one cannot be read.
        """
        root = folder if self.settings.folder is None else os.path.expanduser(self.settings.folder)
        policy = dataclasses.replace(self._policy, root=root)
        pictures = []
        for number, each in enumerate(media, start=1):
            name = f"{each.kind} {number} of the row"
            with _named(name):
                open_one = self._open_image if each.kind == "image" else self._open_video
                pictures.append(open_one(each, policy, name))
        return pictures

    def place(self, rendered: Rendered, pictures: Sequence[Picture]) -> Rendered:
        """Says which pictures a rendered conversation shows, and writes the times of a video's frames into it.

        Args:
          pictures: those of the conversation; the text may end before the last ones.

        Raises:
          ValueError: the template leaves some out.
        """
        places = list(_PLACE.finditer(rendered.text))
        shown = tuple(dataclasses.replace(picture) for picture in pictures[: len(places)])
        if [place[1] == "video" for place in places] != [picture.is_video for picture in shown]:
            raise ValueError(
                f"the chat template renders {len(places)} images and videos of a conversation that has "
                f"{len(pictures)}; training needs a template that shows them as Qwen3.5's does."
            )
        text, end, grown = [], 0, []
        for place, picture in zip(places, shown, strict=True):
            frames = "".join(f"<{time:.1f} seconds>{place[0]}" for time in picture.timestamps) or place[0]
            text += [rendered.text[end : place.start()], frames]
            end = place.end()
            grown.append((end, len(frames) - len(place[0])))
        trained = [
            (start + by, stop + by)
            for start, stop in rendered.trained
            for by in [sum(more for place_end, more in grown if place_end <= start)]
        ]
        return Rendered("".join([*text, rendered.text[end:]]), trained, shown)

    def finish(self, example: Example, pictures: tuple[Picture, ...] = ()) -> Example:
        """Gives a tokenised document as many pads as its pictures have tokens, and its tokens their positions."""
        grids = np.array([picture.grid for picture in pictures], np.int32).reshape(-1, 3)
        per_frame = np.repeat(grids[:, 1] * grids[:, 2] // self._image.merge_size**2, grids[:, 0])
        counts = np.ones(len(example), np.int64)
        pads = np.flatnonzero(np.isin(example.input_ids, self._pads))
        assert len(pads) == len(per_frame), "rows do not spell pads, so that only pictures have some"
        counts[pads] = per_frame
        ids, trained = np.repeat(example.input_ids, counts), np.repeat(example.trained, counts)
        image_token, video_token = self._pads
        positions, _ = mrope_positions(
            ids[None], grids, image_token=image_token, video_token=video_token, merge_size=self._image.merge_size
        )
        signals = {**example.signals, "positions": np.ascontiguousarray(positions[:, 0].T)}
        return Example(ids, trained, signals, pictures)

    def start(self, examples: Iterable[Example]) -> None:
        """Begins to decode the pictures of documents."""
        for example in examples:
            for picture in example.pictures:
                picture.start(self.executor)

    def decoded(self, example: Example) -> tuple[Example, RowError | None]:
        """Waits for the pictures of a document.

        Returns:
          The document; and what is wrong with a picture that cannot be decoded. Such a document keeps its length and
          its patches, for they have been counted, but it shows black pictures and trains nothing.
        """
        try:
            for picture in example.pictures:
                picture.patches()
        except RowError as err:
            black = tuple(map(self._black, example.pictures))
            return dataclasses.replace(example, trained=np.zeros_like(example.trained), pictures=black), err
        return example, None

    def _black(self, picture: Picture) -> Picture:
        picture.forget()
        _, values = self.fields["pixels"].sizes
        return dataclasses.replace(picture, decode=partial(np.zeros, (picture.num_patches, values), np.uint8))

    def lay_out(self, sequences: Sequence[Sequence[tuple[Any, Example]]], where: Callable[[Any], str]) -> HostBatch:
        """Returns the patches of packed sequences as arrays of a batch, and frees the pictures.

        Args:
          where: names the file and the line of a document by its key, for messages.

        Raises:
          ValueError: a picture cannot be decoded; `decoded` puts a black one in its place.
        """
        self.start(example for sequence in sequences for _, example in sequence)
        patches = self.settings.patches_per_sequence
        batch = {
            name: np.zeros((len(sequences), patches, *self.fields[name].sizes[1:]), self.fields[name].dtype)
            for name in ("pixels", "frames", "places")
        }
        # Several documents may show one picture, as the answers to one prompt do.
        uses = Counter(id(picture) for sequence in sequences for _, each in sequence for picture in each.pictures)
        for s, sequence in enumerate(sequences):
            end, grids = 0, []
            for key, example in sequence:
                for picture in example.pictures:
                    start, end = end, end + picture.num_patches
                    try:
                        batch["pixels"][s, start:end] = picture.patches()
                    except RowError as err:
                        raise ValueError(f"{where(key)}: {err}") from err
                    uses[id(picture)] -= 1
                    if not uses[id(picture)]:
                        picture.forget()
                    grids.append(picture.grid)
            batch["frames"][s, :end], batch["places"][s, :end] = patch_places(
                np.array(grids, np.int32).reshape(-1, 3), self._image.merge_size
            )
        return batch

    def _open_image(self, media: Media, policy: MediaPolicy, name: str) -> Picture:
        settings = self._image.limited(_capped(media.options, self._image.max_pixels))
        # What was fetched or decoded from text once is not fetched again.
        opened, called = open_media(media.source, policy), describe(media.source)
        grid = image_grid(*image_size(opened, called, policy), settings)

        def decode() -> UInt8[np.ndarray, "P C"]:
            with _named(name):
                return _checked(*image_patches(decode_image(opened, called, policy), settings), grid, name)

        return Picture(grid, decode, _content(opened, policy, name))

    def _open_video(self, media: Media, policy: MediaPolicy, name: str) -> Picture:
        source, called = media.source, describe(media.source)
        settings = self._video.limited(_capped(media.options, self._video.max_pixels, self._video.max_frames))
        opened = source if are_frames(source) else open_media(source, policy)
        if are_frames(source):
            rates = {rate: media.options.get(rate) for rate in ("raw_fps", "sample_fps")}
            indices, fps = choose_frames(len(source), settings, **rates)
            height, width = image_size(open_media(source[0], policy), describe(source[0]), policy)
            load = partial(load_video, source, policy, settings, **rates)
        else:
            total, fps, height, width = video_header(opened, called, policy)
            indices, fps = sample_frames(total, fps, settings), fps or UNKNOWN_FPS
            # Where fewer frames can be decoded than the header counts, as many are chosen of these.
            settings = dataclasses.replace(settings, num_frames=len(indices))
            load = partial(decode_video, opened, called, policy, settings)
        height, width = frame_size(len(indices), height, width, settings=settings)
        times = timestamps(indices, fps, settings.temporal_patch_size)
        grid = len(times), height // settings.patch_size, width // settings.patch_size

        def decode() -> UInt8[np.ndarray, "P C"]:
            with _named(name):
                return _checked(*cut_frames(load().frames, settings), grid, name)

        return Picture(grid, decode, _content(opened, policy, name), tuple(times))


def vision_reader(
    settings: VisionDataConfig | None, folder: Path, model: ModelConfig, tokenizer: Tokenizer
) -> VisionReader | None:
    """Returns what reads images and videos as the checkpoint's processor does; None where the settings ask for none.

    Raises:
      ValueError: the model has no tower, or one that reads other patches than the processor makes.
    """
    if settings is None:
        return None
    reader = VisionReader.from_pretrained(folder, settings, tokenizer)
    reader.check_model(model, folder)
    return reader


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Raises what is wrong with an image or a video as an error of its row."""
    try:
        yield
    except MediaError as err:
        told = str(err).rstrip(".").replace("set allow_urls", "give --data.vision.allow-urls")
        raise RowError("media", f"{name}: {told}") from err


def _content(opened: Opened | Sequence[Any], policy: MediaPolicy, name: str) -> Callable[[], bytes]:
    """Returns what reads the content of an image or a video once, where it is asked for."""

    @cache
    def content() -> bytes:
        with _named(name):
            return content_of(opened, policy)

    return content


def _capped(options: Mapping[str, Any], most_pixels: int, most_frames: int = 0) -> dict[str, Any]:
    """Lowers what an item asks for to the limits of the run."""
    limits = dict.fromkeys(("min_pixels", "max_pixels", "total_pixels"), most_pixels) | {"max_frames": most_frames}
    return {
        name: min(value, limits[name]) if name in limits and isinstance(value, int) else value
        for name, value in options.items()
    }


def _checked(patches: np.ndarray, found: np.ndarray, grid: Grid, name: str) -> UInt8[np.ndarray, "P C"]:
    if tuple(found) != grid:
        raise RowError("media", f"{name} has another size than its header says; its file is damaged")
    return patches
