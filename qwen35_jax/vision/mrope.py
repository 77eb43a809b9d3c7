"""Positions of text, images and videos for the decoder's rotary embedding, computed on the host.

Text counts on, the same in all three components. The tokens of a frame share one temporal position, the one that the
next text token would have had; their height and width add the row and the column of the token in the frame. What
follows goes on after the longer side. A video is a run of such frames with text (timestamps) between them.

Letters: ``B`` batch, ``T`` tokens, ``F`` frames of all images and videos.

Source: ``Qwen3_5Model.get_rope_index`` of transformers 5.23. Packed documents are ours.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from qwen35_jax.config import ModelConfig
from qwen35_jax.vision.patches import checked_grids


class _Frames(NamedTuple):
    """Where each frame's tokens begin in the flattened batch, how many they are, and the frame's sides in tokens."""

    start: Int[np.ndarray, " F"]
    count: Int[np.ndarray, " F"]
    rows: Int[np.ndarray, " F"]
    columns: Int[np.ndarray, " F"]


def mrope_positions(
    input_ids: Int[np.ndarray, "B T"],
    grids: Int[np.ndarray, "n 3"],
    segment_ids: Int[np.ndarray, "B T"] | None = None,
    *,
    image_token: int,
    video_token: int,
    merge_size: int = 2,
) -> tuple[Int32[np.ndarray, "3 B T"], Int32[np.ndarray, " B"]]:
    """Returns the temporal, height and width position of every token, and the position after the last token of a row.

    Args:
      grids: frames, rows and columns in patches of each image (1 frame) and video, in reading order through the batch.
      segment_ids: 0 for padding, then 1, 2, ... for the documents of a row; each starts at position 0. None if every
        token belongs to one document. Padding gets position 0.
      image_token, video_token: ids of the pads that stand for one merged token each.
      merge_size: side of the square of patches that become one token.

    Returns:
      Positions; and for each row what comes next, from which decoding goes on: its last position and one more, and 0
      for a row of padding.

    Raises:
      ValueError: the pads are not those that the grids need.

    Source: ``get_rope_index`` of transformers 5.23, whose ``rope_deltas`` are what comes next less the row's length.
    """
    segments = np.ones(input_ids.shape, np.int32) if segment_ids is None else np.asarray(segment_ids)
    used = segments != 0
    frames = _frames(np.asarray(input_ids), segments, grids, (image_token, video_token), merge_size)
    # Text goes on by one at each token, a frame once, at its last token.
    steps = used.astype(np.int32).reshape(-1)
    within = np.arange(frames.count.sum()) - np.repeat(frames.count.cumsum() - frames.count, frames.count)
    tokens = np.repeat(frames.start, frames.count) + within
    steps[tokens] = 0
    steps[frames.start + frames.count - 1] = np.maximum(frames.rows, frames.columns)
    steps = steps.reshape(input_ids.shape)
    before = steps.cumsum(axis=1, dtype=np.int32) - steps
    begins = np.diff(segments, axis=1, prepend=0) != 0
    before -= np.maximum.accumulate(np.where(begins, before, 0), axis=1)
    positions = np.broadcast_to(np.where(used, before, 0), (3, *before.shape)).copy()
    row, column = np.divmod(within, np.repeat(frames.columns, frames.count))
    flat = positions.reshape(3, -1)
    flat[1, tokens] += row.astype(np.int32)
    flat[2, tokens] += column.astype(np.int32)
    return positions, _after_last(before + steps, used)


def check_needs_no_pixels(name: str, input_ids: Int[np.ndarray, "*L"], config: ModelConfig) -> None:
    """Checks token ids that come without pixels. A pad that no mark opens is a token as any other.

    Args:
      name: what messages call the ids.

    Raises:
      ValueError: an image or a video begins among them.
    """
    if config.vision is None:
        return
    start, pads = config.vision_start_token_id, (config.image_token_id, config.video_token_id)
    opened = (input_ids[..., :-1] == start) & np.isin(input_ids[..., 1:], pads)
    if opened.any():
        raise ValueError(
            f"{name} has the place of an image or a video (token {start}, then {input_ids[..., 1:][opened][0]}), but "
            "there are no pixels; give the ids with the pixels and grids that the processor made, or leave the place "
            "out."
        )


def _after_last(after: Int32[np.ndarray, "B T"], used: np.ndarray) -> Int32[np.ndarray, " B"]:
    if not used.shape[1]:
        return np.zeros(len(used), np.int32)
    last = used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
    return np.where(used.any(axis=1), np.take_along_axis(after, last[:, None], axis=1)[:, 0], 0).astype(np.int32)


def _frames(
    input_ids: Int[np.ndarray, "B T"],
    segments: Int[np.ndarray, "B T"],
    grids: Int[np.ndarray, "n 3"],
    pads: tuple[int, int],
    merge_size: int,
) -> _Frames:
    """Gives the pads to the frames in reading order."""
    grids = checked_grids(grids, merge_size)
    rows, columns = np.repeat(grids[:, 1:] // merge_size, grids[:, 0], axis=0).T
    count = rows * columns
    places = np.flatnonzero(np.isin(input_ids, pads) & (segments != 0))
    if len(places) != count.sum():
        raise ValueError(
            f"the tokens hold {len(places)} pads of images and videos, but the grids need {count.sum()}; give the "
            "grids of exactly these tokens, in reading order."
        )
    first = count.cumsum() - count
    start, end = places[first], places[first + count - 1]
    frames = _Frames(start, count, rows, columns)
    width = max(input_ids.shape[1], 1)
    whole = (end - start == count - 1) & (start // width == end // width)
    for ids in (segments, input_ids):
        whole &= ids.flat[start] == ids.flat[end]
    is_video = np.repeat(grids[:, 0] > 1, grids[:, 0])
    whole &= ~is_video | (input_ids.flat[start] == pads[1])
    if not whole.all():
        frame = int(np.flatnonzero(~whole)[0])
        raise ValueError(
            f"frame {frame + 1} of the images and videos needs {count[frame]} pads of one kind in a row, but others "
            "stand there; give the grids in the order in which their pads appear."
        )
    return frames
