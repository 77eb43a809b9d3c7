"""Conversations with images and videos as the model reads them.

The chat template writes one placeholder for each image and video. Then the placeholders grow: an image becomes as many
pads as it has tokens, and a video a time and as many pads for each pair of frames.

Letters: ``T`` tokens, ``P`` patches, ``C`` values of a patch, ``n`` images and videos.

Source: ``Qwen3VLProcessor`` of transformers 4.57.6 and 5.2.0. Release 5.23.0 leaves a second pair of marks around
videos, on which the model was not trained.
"""

import logging
import mmap
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from qwen35_jax.processing.chat_template import with_tidy_items
from qwen35_jax.processing.image import image_patches, load_image, normalize
from qwen35_jax.processing.media import MediaError, MediaPolicy
from qwen35_jax.processing.settings import ImageSettings, VideoSettings
from qwen35_jax.processing.threads import in_shares, in_threads
from qwen35_jax.processing.tokenizer import Tokenizer, read_json
from qwen35_jax.processing.video import cut_frames, load_video, timestamps
from qwen35_jax.vision.mrope import mrope_positions

logger = logging.getLogger(__name__)

Kind = Literal["image", "video"]
PADS: dict[Kind, str] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
"""The token that stands for one merged token of an image, and of a video."""
START, END = "<|vision_start|>", "<|vision_end|>"

# The marks around a video belong to its placeholder: each pair of frames gets its own.
_PLACEHOLDER = re.compile("|".join(map(re.escape, (f"{START}{PADS['video']}{END}", PADS["video"], PADS["image"]))))
# Patches that are normalised in one go, so that both steps find them in a core's cache.
_CACHED = 64
# Bytes from which numpy asks for huge pages.
_LARGE = 1 << 22
_SOURCE_KEYS: dict[Kind, tuple[str, ...]] = {"image": ("image", "image_url"), "video": ("video",)}
_OTHER_SOURCE_KEYS = ("url", "path")


class Media(NamedTuple):
    """An image or a video of a conversation: what it is, where it comes from, and the item that may limit it."""

    kind: Kind
    source: Any
    options: Mapping[str, Any]


class VisionItem(NamedTuple):
    """An image or a video in patches.

    Attributes:
      patches: uint8 [P, C] in merge-block order.
      grid: int32 [3]: frame pairs (1 for an image), rows and columns in patches.
      timestamps: seconds of each frame pair of a video.
    """

    kind: Kind
    patches: np.ndarray
    grid: np.ndarray
    timestamps: tuple[float, ...] = ()


def media_of(messages: Iterable[Mapping[str, Any]]) -> list[Media]:
    """Lists the images and videos of a conversation in reading order, those for which the template writes placeholders.

    Raises:
      MediaError: an item names no source.
    """
    found = []
    for message in messages:
        content = with_tidy_items(message).get("content")
        for item in content if isinstance(content, list) else ():
            kind = _kind(item)
            if kind is not None:
                found.append(Media(kind, _source(kind, item), item))
    return found


def _kind(item: Any) -> Kind | None:
    """Returns what an item is by the rules of the published templates."""
    if not isinstance(item, Mapping):
        return None
    if "image" in item or "image_url" in item or item.get("type") == "image":
        return "image"
    return "video" if "video" in item or item.get("type") == "video" else None


def _source(kind: Kind, item: Mapping[str, Any]) -> Any:
    for key in (*_SOURCE_KEYS[kind], *_OTHER_SOURCE_KEYS):
        source = item.get(key)
        if isinstance(source, Mapping) and "url" in source:
            source = source["url"]
        if source is not None:
            return source
    raise MediaError(f"an item of the type {kind} names no source; write {{'type': '{kind}', '{kind}': PATH}}.")


def check_placeholders(token_ids: Sequence[int], messages: Iterable[Mapping[str, Any]], tokenizer: Tokenizer) -> None:
    """Checks that a rendered conversation has a placeholder for each of its images and videos, and no other.

    Raises:
      MediaError: a text holds one that somebody wrote.
    """
    kinds = {tokenizer.backend.token_to_id(pad): kind for kind, pad in PADS.items()}
    found = [kinds[token] for token in token_ids if token in kinds]
    _compare(found, [media.kind for media in media_of(messages)])


class Processor:
    """Turns conversations into the model's inputs: text by the tokenizer, images and videos into patches."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        image: ImageSettings | None = None,
        video: VideoSettings | None = None,
        policy: MediaPolicy | None = None,
    ):
        """Puts the parts together.

        Args:
          policy: what may be opened; by default files, and no addresses.

        Raises:
          ValueError: images and videos would be cut into patches of different sizes.
        """
        self.tokenizer = tokenizer
        self.image, self.video = image or ImageSettings(), video or VideoSettings()
        self.policy = policy or MediaPolicy()
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            ours, theirs = getattr(self.image, name), getattr(self.video, name)
            if ours != theirs:
                raise ValueError(f"{name} is {ours} for images and {theirs} for videos; one tower needs one size.")

    @classmethod
    def from_pretrained(cls, path: str | Path, policy: MediaPolicy | None = None) -> "Processor":
        """Reads the tokenizer, the chat template and the sizes of a Hugging Face folder.

        The sizes come from ``preprocessor_config.json`` and ``video_preprocessor_config.json``, or from
        ``processor_config.json``, which newer releases of transformers write. Where a folder has neither, they are
        those of the published checkpoints, and a warning says so.

        Raises:
          ValueError: a file is missing or malformed, or asks for what Qwen3.5 does not do.
        """
        folder = Path(path)
        tokenizer = Tokenizer.from_pretrained(folder)
        together = folder / "processor_config.json"
        both = read_json(together) if together.is_file() else {}
        found: dict[str, Any] = {}
        for name, file in (("image", "preprocessor_config.json"), ("video", "video_preprocessor_config.json")):
            settings = ImageSettings if name == "image" else VideoSettings
            if isinstance(both.get(f"{name}_processor"), Mapping):
                found[name] = settings.from_json(both[f"{name}_processor"], f"{together} ({name}_processor)")
            elif (folder / file).is_file():
                found[name] = settings.from_json(read_json(folder / file), str(folder / file))
            else:
                logger.warning("%s has no %s; the sizes of the published checkpoints are taken.", folder, file)
        return cls(tokenizer, found.get("image"), found.get("video"), policy)

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        add_vision_id: bool = False,
    ) -> dict[str, np.ndarray]:
        """Turns a conversation into the inputs of ``Qwen35.logits``.

        Returns:
          ``input_ids`` int32 [1, T] and ``position_ids`` int32 [3, 1, T]; and where there are images or videos,
          ``pixels`` float32 [P, C] and ``grids`` int32 [n, 3], in reading order.

        Raises:
          ChatTemplateError: the template refuses the conversation.
          MediaError: an image or a video cannot be read, or may not be.
        """
        # The template refuses before anything is fetched or decoded.
        text = self.tokenizer.chat_template.render(
            messages,
            tools=tools,
            enable_thinking=enable_thinking,
            add_generation_prompt=add_generation_prompt,
            add_vision_id=add_vision_id,
        )
        items = self.items(media_of(messages))
        ids = np.array([self.tokenizer.encode(self.expand(text, items))], np.int32)
        grids = np.array([item.grid for item in items], np.int32).reshape(-1, 3)
        pads = (self.tokenizer.token_id(PADS[kind]) for kind in ("image", "video")) if items else (-1, -1)
        image_token, video_token = pads
        positions, _ = mrope_positions(
            ids, grids, image_token=image_token, video_token=video_token, merge_size=self.image.merge_size
        )
        inputs = {"input_ids": ids, "position_ids": positions}
        return inputs | {"pixels": join_pixels(items), "grids": grids} if items else inputs

    def items(self, media: Sequence[Media]) -> list[VisionItem]:
        """Opens images and videos and cuts them into patches, several at a time.

        Raises:
          MediaError: one cannot be read, or may not be; the message says which by its number.
        """
        return in_threads(self._numbered, range(1, len(media) + 1), media)

    def item(self, media: Media) -> VisionItem:
        """Opens one image or video and cuts it into patches.

        Raises:
          MediaError: it cannot be read, or may not be.
        """
        kind, source, options = media
        if kind == "image":
            settings = self.image.limited(options)
            return VisionItem(kind, *image_patches(load_image(source, self.policy), settings))
        settings = self.video.limited(options)
        rates = {name: options.get(name) for name in ("raw_fps", "sample_fps")}
        frames, fps, indices = load_video(source, self.policy, settings, **rates)
        return VisionItem(
            kind, *cut_frames(frames, settings), tuple(timestamps(indices, fps, settings.temporal_patch_size))
        )

    def num_tokens(self, item: VisionItem) -> int:
        """Returns how many tokens of the model an image or a video takes, without marks and times."""
        return int(item.grid.prod()) // self.image.merge_size**2

    def expand(self, text: str, items: Sequence[VisionItem]) -> str:
        """Replaces the placeholders of a rendered conversation by the pads of each image and video.

        Raises:
          MediaError: the placeholders are not those of the items. Then a text holds one that somebody wrote, or an item
            has been left out.
        """
        places = _PLACEHOLDER.findall(text)
        kinds = ["image" if place == PADS["image"] else "video" for place in places]
        _compare(kinds, [item.kind for item in items])
        grown = iter([self._grown(item) for item in items])
        return _PLACEHOLDER.sub(lambda _: next(grown), text)

    def _grown(self, item: VisionItem) -> str:
        count, pad = self.num_tokens(item), PADS[item.kind]
        if item.kind == "image":
            return pad * count
        frame = f"{START}{pad * (count // int(item.grid[0]))}{END}"
        return "".join(f"<{seconds:.1f} seconds>{frame}" for seconds in item.timestamps)

    def _numbered(self, number: int, media: Media) -> VisionItem:
        try:
            return self.item(media)
        except MediaError as err:
            raise MediaError(f"image or video {number}: {err}") from err


def join_pixels(items: Sequence[VisionItem]) -> Float32[np.ndarray, "P C"]:
    """Returns the normalised patches of several images and videos in one array."""
    ends = np.cumsum([len(item.patches) for item in items])
    joined = _empty(int(ends[-1]), items[0].patches.shape[1])
    for item, part in zip(items, np.split(joined, ends[:-1]), strict=True):
        _normalize_into(part, item.patches)
    return joined


def _empty(rows: int, columns: int) -> Float32[np.ndarray, "P C"]:
    """Allocates in small pages. numpy asks for huge ones, each of which a virtual machine may have to fetch anew from
    its host; that can take longer than all the rest of the work."""
    size = rows * columns * np.dtype(np.float32).itemsize
    if size < _LARGE:
        return np.empty((rows, columns), np.float32)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.float32).reshape(rows, columns)


def _normalize_into(out: Float32[np.ndarray, "P C"], patches: UInt8[np.ndarray, "P C"]) -> None:
    def convert(firsts: range) -> None:
        for first in firsts:
            part = slice(first, first + _CACHED)
            normalize(patches[part], out[part])

    in_shares(convert, range(0, len(patches), _CACHED))


def _compare(written: Sequence[str], given: Sequence[str]) -> None:
    if written != given:
        raise MediaError(
            f"the conversation has {_numbers(written)} in its text, but {_numbers(given)} were given"
            f"{' in another order' if len(written) == len(given) else ''}; give one for each, and write "
            f"{PADS['image']} and {PADS['video']} in no text."
        )


def _numbers(kinds: Sequence[str]) -> str:
    return " and ".join(f"{kinds.count(kind)} {kind}s" for kind in ("image", "video"))
