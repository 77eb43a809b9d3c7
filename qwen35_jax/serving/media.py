"""Images and videos of a request: opened as far as the policy of the server allows, or refused by their field."""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen35_jax.inference.prompts import conversation_prompt
from qwen35_jax.processing.media import MediaError, describe
from qwen35_jax.processing.processor import Media, Processor, VisionItem
from qwen35_jax.serving.errors import RequestError
from qwen35_jax.serving.service import Service

MAX_MEDIA = 128
"""Images and videos of one request."""


def read_media(
    service: Service, messages: Sequence[Mapping[str, Any]], fields: Sequence[str], **how: Any
) -> Sequence[int]:
    """Returns the prompt of a conversation with images and videos.

    Args:
      fields: names of the fields that hold them, in reading order.
      how: tools and ``enable_thinking`` for the chat template.

    Raises:
      RequestError: the model reads text alone, there are too many, or one is wrong or too large.
      ValueError: the template refuses the conversation.
    """
    processor = service.processor
    if processor is None:
        raise RequestError("the model of this server reads text alone; leave the image or video out.", param=fields[0])
    if len(fields) > MAX_MEDIA:
        raise RequestError(f"{len(fields)} images and videos; give at most {MAX_MEDIA}.", param=fields[MAX_MEDIA])
    engine = service.worker.engine

    def open_items(media: Sequence[Media]) -> list[VisionItem]:
        items: list[VisionItem] = []
        for field, one in zip(fields, media, strict=True):
            if one.source.startswith(("http://", "https://")) and not processor.policy.allow_urls:
                raise RequestError(
                    f"{field}: {describe(one.source)} is not fetched; send a data URI, or start the server with "
                    "--allow-urls.",
                    param=field,
                )
            try:
                items.append(processor.item(_within(processor, one)))
            except MediaError as err:
                raise RequestError(f"{field}: {err}", param=field) from err
            patches = sum(len(item.patches) for item in items)
            if patches > engine.sizes.most_patches:
                side = processor.image.patch_size
                raise RequestError(
                    f"{field}: with it, the images and videos have {patches} patches of {side} x {side} pixels, but "
                    f"this server takes {engine.sizes.most_patches} a request; send smaller or fewer of them.",
                    param=field,
                )
        return items

    [prompt] = engine.read([conversation_prompt(processor, messages, open_items=open_items, **how)])
    return prompt


def _within(processor: Processor, media: Media) -> Media:
    """Lowers the pixels of low detail to what this checkpoint allows."""
    if "max_pixels" not in media.options:
        return media
    most = (processor.image if media.kind == "image" else processor.video).max_pixels
    return media._replace(options={**media.options, "max_pixels": min(media.options["max_pixels"], most)})
