"""The parts of a message's content: text, images and videos as OpenAI's protocol sends them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# The protocol's low detail is a picture of 512 x 512 pixels.
_LOW_DETAIL = {"max_pixels": 512 * 512}


class Checked(BaseModel):
    """A part of a request, all of whose fields are known and of the right types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(Checked):
    """A part that is text."""

    type: Literal["text"]
    text: str


class Location(Checked):
    """Where an image or a video is: a data URI, or an address where the server fetches such."""

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_object(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError('write {"url": ...} around the address')
        return value

    def options(self) -> dict[str, Any]:
        """Returns what the processor is told besides; ``read_media`` keeps it within the processor's own limits."""
        return _LOW_DETAIL if self.detail == "low" else {}


class ImagePart(Checked):
    """A part that is an image."""

    type: Literal["image_url"]
    image_url: Location

    def for_template(self) -> dict[str, Any]:
        """Returns the part as chat template and processor take it."""
        return {"type": "image", "image": self.image_url.url, **self.image_url.options()}


class VideoPart(Checked):
    """A part that is a video; OpenAI's own models have none, other servers take it like this."""

    type: Literal["video_url"]
    video_url: Location

    def for_template(self) -> dict[str, Any]:
        """Returns the part as chat template and processor take it."""
        return {"type": "video", "video": self.video_url.url, **self.video_url.options()}


ContentPart = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]
MEDIA_PARTS = (ImagePart, VideoPart)
PART_TYPES = "'text', 'image_url' or 'video_url'"
