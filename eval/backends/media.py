"""How the images and videos of a conversation go to a server, and to our engine."""

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.tasks.media import resolved

Processor = Callable[..., Mapping[str, np.ndarray]]
"""``qwen35_jax.processing.Processor``: a conversation to ``input_ids``, ``position_ids``, ``pixels`` and ``grids``."""

_KINDS = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"RIFF", "webp"))


def data_uri(content: bytes) -> str:
    """Returns an image as an address that holds it."""
    kind = next((name for start, name in _KINDS if content.startswith(start)), "octet-stream")
    prefix = "application" if kind == "octet-stream" else "image"
    return f"data:{prefix}/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def openai_messages(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns a conversation as OpenAI's protocol has it, images and videos as addresses that hold them.

    The protocol has no place for limits of pixels and frames.
    """

    def part_of(part: Mapping[str, Any]) -> Mapping[str, Any]:
        if part["type"] == "image":
            image = part["image"]
            return {"type": "image_url", "image_url": {"url": data_uri(image.read())}}
        if part["type"] == "video":
            content = base64.b64encode(Path(part["video"]).read_bytes()).decode("ascii")
            return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{content}"}}
        return part

    return [
        message
        if isinstance(message["content"], str)
        else {**message, "content": [part_of(part) for part in message["content"]]}
        for message in messages
    ]


def inputs_of(
    processor: Processor, messages: Sequence[Mapping[str, Any]], *, enable_thinking: bool
) -> Mapping[str, np.ndarray]:
    """Returns the model inputs of a conversation with images or videos."""
    return processor(resolved(messages), enable_thinking=enable_thinking, add_generation_prompt=True)
