"""Prompts with images and videos: token ids, and beside them patches, grids and positions.

Letters: ``T`` tokens, ``P`` patches, ``C`` values of a patch, ``n`` images and videos, ``N`` their tokens (pads).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy.typing import DTypeLike

from qwen35_jax.config import ModelConfig
from qwen35_jax.processing.processor import Media as ConversationMedia
from qwen35_jax.processing.processor import Processor, VisionItem
from qwen35_jax.processing.processor import media_of as media_of_messages
from qwen35_jax.vision.mrope import mrope_positions
from qwen35_jax.vision.patches import check_patches

Prompt = Sequence[int] | Mapping[str, Any]
"""Token ids, or the inputs that ``processing.Processor`` makes of a conversation."""

_KEYS = ("input_ids", "position_ids", "pixels", "grids")


class _Item(NamedTuple):
    """One image or video: from its first pad to the one after its last, and a digest of its patches and grid."""

    start: int
    stop: int
    digest: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Media:
    """The images and videos of a prompt.

    Attributes:
      pixels: [P, C], uint8 or the normalised values in the model's dtype.
      grids: int32 [n, 3].
      positions: int32 [3, T], those of the prompt's tokens.
      pads: places of the pads among the tokens, ascending.
      items: one entry an image or video.
      begins: tokens before this one are read as text is.
      key: a digest of all patches and grids.
    """

    pixels: np.ndarray
    grids: Int[np.ndarray, "n 3"]
    positions: Int[np.ndarray, "3 T"]
    pads: Int[np.ndarray, " N"]
    items: tuple[_Item, ...]
    begins: int
    key: bytes

    @property
    def last(self) -> int:
        """The place of the last pad."""
        return int(self.pads[-1])

    @property
    def offset(self) -> int:
        """The position of the token after the prompt less the prompt's length."""
        return int(self.positions.max()) + 1 - self.positions.shape[1]

    def positions_of(self, start: int, stop: int) -> Int[np.ndarray, "3 _"]:
        """Returns the positions of some tokens, also of tokens after the prompt."""
        given = self.positions[:, start:stop]
        after = np.arange(max(start, self.positions.shape[1]), stop, dtype=np.int32) + np.int32(self.offset)
        return np.concatenate([given, np.broadcast_to(after, (3, len(after)))], axis=1)

    def num_before(self, place: int) -> int:
        """Counts the pads before a place."""
        return int(np.searchsorted(self.pads, place))

    def content(self, start: int, stop: int) -> bytes:
        """Returns what tells tokens from others of the same ids: images and videos all have one id."""
        if stop <= self.begins:
            return b""
        here = [item for item in self.items if item.start < stop and item.stop > start]
        marks = b"".join(np.int64(item.start).tobytes() + item.digest for item in here)
        return marks + self.positions_of(start, stop).tobytes()


class MediaPrompt(Sequence[int]):
    """The token ids of a prompt that has images and videos.

    Attributes:
      media: the images and videos.
    """

    def __init__(self, ids: list[int], media: Media):
        self._ids, self.media = ids, media

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index):
        return self._ids[index]


def conversation_prompt(
    processor: Processor,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
    open_items: Callable[[list[ConversationMedia]], list[VisionItem]] | None = None,
) -> Prompt:
    """Returns what ``processor`` makes of a conversation, but its pixels as bytes, which the tower normalises.

    They take a quarter of the memory, in the queue and on the way to the device.

    Args:
      open_items: opens the images and videos, by default ``processor.items``.

    Raises:
      ChatTemplateError: the template refuses the conversation.
      MediaError: an image or a video cannot be read, or may not be.
    """
    tokenizer = processor.tokenizer
    text = tokenizer.chat_template.render(
        messages, tools=tools, enable_thinking=enable_thinking, add_generation_prompt=True
    )
    items = (open_items or processor.items)(media_of_messages(messages))
    ids = tokenizer.encode(processor.expand(text, items))
    if not items:
        return ids
    pixels, grids = np.concatenate([item.patches for item in items]), np.stack([item.grid for item in items])
    return {"input_ids": np.array([ids], np.int32), "pixels": pixels, "grids": grids}


def extended(prompt: Sequence[int], continuation: Sequence[int]) -> Sequence[int]:
    """Returns a prompt that has been read with more tokens of text after it."""
    ids = [*prompt, *continuation]
    return MediaPrompt(ids, prompt.media) if isinstance(prompt, MediaPrompt) else ids


def media_of(prompt: Sequence[int]) -> Media | None:
    """Returns the images and videos of a prompt that has been read; None for text."""
    return prompt.media if isinstance(prompt, MediaPrompt) else None


def read_prompt(
    name: str, prompt: Prompt, config: ModelConfig, *, most_patches: int, dtype: DTypeLike = np.float32
) -> Sequence[int]:
    """Reads a prompt: token ids stay as they are, and so does a prompt that has been read.

    Args:
      name: what messages call it.
      most_patches: of one prompt; 0 if the model has no tower.
      dtype: what the tower computes in.

    Raises:
      ValueError: the arrays have wrong shapes, do not belong together, or are more than the engine takes.
    """
    if not isinstance(prompt, Mapping):
        first = prompt[0] if len(prompt) else 0
        if isinstance(first, str | Mapping | list | tuple | np.ndarray):
            raise ValueError(
                f"{name} is no list of token ids: it begins with {first!r:.40}; give what Tokenizer.encode, "
                "encode_chat or a Processor returns."
            )
        return prompt
    ids = _ids_of(name, prompt)
    positions = _given_positions(name, prompt, len(ids))
    pixels, grids = prompt.get("pixels"), prompt.get("grids")
    if (pixels is None) != (grids is None):
        raise ValueError(f"{name} has only one of pixels and grids; give both, as the processor returns them.")
    if pixels is None or grids is None or not (len(pixels) or len(grids)):
        if positions is not None and not np.array_equal(positions, np.broadcast_to(np.arange(len(ids)), (3, len(ids)))):
            raise ValueError(f"{name} has no pixels, but position_ids that do not count from 0; leave them out.")
        return ids.tolist()
    if not most_patches:
        raise ValueError(
            f"{name} has pixels, but the engine's model reads text alone; load a checkpoint with a vision tower, with "
            "vision=True."
        )
    assert config.vision is not None, "only a configuration with vision makes a tower"
    pixels, grids, merge_size = np.asarray(pixels), np.asarray(grids), config.vision.spatial_merge_size
    if len(pixels) > most_patches:
        raise ValueError(
            f"{name} has {len(pixels)} patches, but the engine takes {most_patches} a request; give smaller or fewer "
            "images, or raise most_patches."
        )
    image_token, video_token = config.image_token_id, config.video_token_id
    try:
        check_patches(pixels, grids, config.vision)
        counted, _ = mrope_positions(
            ids[None], grids, image_token=image_token, video_token=video_token, merge_size=merge_size
        )
    except ValueError as err:
        raise ValueError(f"{name}: {err}") from err
    pads = np.isin(ids, (image_token, video_token))
    if pads[-1]:
        raise ValueError(f"{name} ends inside an image or a video; let at least one token follow it.")
    pixels = pixels if pixels.dtype == np.uint8 else pixels.astype(dtype)
    positions = counted[:, 0] if positions is None else positions
    media = _media(np.flatnonzero(pads), pixels, grids.astype(np.int32), positions, merge_size**2)
    return MediaPrompt(ids.tolist(), media)


def read_prompts(prompts: Sequence[Prompt], config: ModelConfig, **limits: Any) -> list[Sequence[int]]:
    """Reads prompts as ``read_prompt`` does; one that occurs several times, as for several samples, is read once."""
    # The list holds them, so that no two of them have the same id.
    prompts, read = list(prompts), {}
    for number, prompt in enumerate(prompts):
        if id(prompt) not in read:
            read[id(prompt)] = read_prompt(f"prompt {number}", prompt, config, **limits)
    return [read[id(prompt)] for prompt in prompts]


def _ids_of(name: str, prompt: Mapping[str, Any]) -> Int[np.ndarray, " T"]:
    unknown = sorted(set(map(str, prompt)) - set(_KEYS))
    if unknown or "input_ids" not in prompt:
        wrong = f"holds {unknown[0]!r}" if unknown else "lacks input_ids"
        raise ValueError(f"{name} {wrong}; give what the processor returns: {', '.join(_KEYS)}.")
    ids = np.asarray(prompt["input_ids"])
    if ids.ndim != 2 or len(ids) != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"{name} has input_ids of shape {ids.shape} and type {ids.dtype}; expected integers of shape (1, tokens)."
        )
    return ids[0]


def _given_positions(name: str, prompt: Mapping[str, Any], length: int) -> Int[np.ndarray, "3 T"] | None:
    positions = prompt.get("position_ids")
    if positions is None:
        return None
    positions = np.asarray(positions)
    if positions.shape != (3, 1, length) or not np.issubdtype(positions.dtype, np.integer):
        raise ValueError(
            f"{name} has position_ids of shape {positions.shape} and type {positions.dtype}; expected integers of "
            f"shape {(3, 1, length)}, as the processor returns them."
        )
    return positions[:, 0].astype(np.int32)


def _media(pads: np.ndarray, pixels: np.ndarray, grids: np.ndarray, positions: np.ndarray, joined: int) -> Media:
    """Cuts pads and patches into images and videos; ``joined`` patches make a vector."""
    ends, items, first = np.cumsum(grids.astype(np.int64).prod(axis=1)), [], 0
    for grid, part, end in zip(grids, np.split(pixels, ends[:-1]), (ends // joined).tolist(), strict=True):
        digest = hashlib.blake2b(grid.tobytes() + str(part.dtype).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(part).view(np.uint8).data)
        items.append(_Item(int(pads[first]), int(pads[end - 1]) + 1, digest.digest()))
        first = end
    uncounted = np.flatnonzero((positions != np.arange(positions.shape[1])).any(axis=0))
    begins = min([int(pads[0]), *uncounted[:1].tolist()])
    key = hashlib.blake2b(b"".join(item.digest for item in items), digest_size=16).digest()
    return Media(pixels, grids, positions, pads, tuple(items), begins, key)
