"""Where images and videos come from, and what a program that reads other people's conversations allows.

A source is a path, an ``http(s)://`` or ``gs://`` or ``file://`` address, a data URI, bytes, a Pillow image, an array,
or ``{"bytes": ..., "path": ...}`` as Hugging Face data sets store files.
"""

import base64
import binascii
import dataclasses
import errno
import posixpath
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qwen35_jax import gcs

_SHOWN = 80

Opened = bytes | Path | Image.Image | np.ndarray
"""What `open_media` returns: the bytes, the path of an existing file, or the image or array itself."""


class MediaError(ValueError):
    """An image or a video cannot be read, or may not be; the message is one line."""


@dataclasses.dataclass(frozen=True)
class MediaPolicy:
    """What may be opened, and how large it may be.

    Attributes:
      allow_urls: fetch ``http://`` and ``https://`` addresses.
      allow_private_addresses: fetch them also from this machine and from networks that the internet does not reach.
      allow_files: read files of this machine, and objects of buckets (``gs://``).
      root: the folder (or ``gs://`` address) where relative paths start; the working directory if None.
      only_inside_root: refuse files that lie outside ``root``, also where ``..`` or a link leads out of it.
      max_bytes: the most that is downloaded, or decoded from a data URI, for one image or video.
      max_pixels: the most pixels of an image, or of a frame; the default is where Pillow warns of a bomb.
      timeout: seconds that one download may take, redirects included.
    """

    allow_urls: bool = False
    allow_private_addresses: bool = False
    allow_files: bool = True
    root: Path | str | None = None
    only_inside_root: bool = False
    max_bytes: int = 256 * 2**20
    max_pixels: int = 89_478_485
    timeout: float = 20.0

    def __post_init__(self):
        if self.only_inside_root and self.root is None:
            raise ValueError("only_inside_root=True needs a folder; set root.")
        for name in ("max_bytes", "max_pixels", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")


def open_media(source: Any, policy: MediaPolicy) -> Opened:
    """Finds what a source names.

    Raises:
      MediaError: there is nothing there, the policy forbids it, or it is too large.
    """
    if isinstance(source, Mapping):
        content, path = source.get("bytes"), source.get("path")
        source = path if content is None else content
    if isinstance(source, (Image.Image, np.ndarray)):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, Path):
        return _file(str(source), policy)
    if not isinstance(source, str) or not source:
        raise MediaError(
            f"{describe(source)} is no image or video; give a path, an address, a data URI, bytes, a Pillow image, an "
            'array, or {"bytes": ..., "path": ...}.'
        )
    if source.startswith("data:"):
        return _data_uri(source, policy)
    if source.startswith(("http://", "https://")):
        if not policy.allow_urls:
            raise MediaError(
                f"{describe(source)} is not fetched: addresses are not allowed here; give a data URI, or set "
                "allow_urls."
            )
        # Most programs never fetch, and need not import what it takes.
        from qwen35_jax.processing.fetch import fetch

        return fetch(source, policy)
    return _file(source, policy)


def describe(source: Any) -> str:
    """Names a source in a message, shortly."""
    if isinstance(source, Mapping):
        named = source.get("path") if isinstance(source.get("path"), str) else source.get("bytes")
        return describe(named)
    if isinstance(source, (str, Path)):
        text = "a data URI" if str(source).startswith("data:") else repr(str(source))
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]}...'"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"a file of {len(source)} bytes"
    if isinstance(source, np.ndarray):
        return f"an array of {source.dtype} with shape {source.shape}"
    if isinstance(source, Image.Image):
        return f"a Pillow image of mode {source.mode}"
    if isinstance(source, (list, tuple)):
        return f"a list of {len(source)}"
    return "None" if source is None else f"a value of type {type(source).__name__}"


def _data_uri(source: str, policy: MediaPolicy) -> bytes:
    header, comma, data = source.partition(",")
    if not comma:
        raise MediaError("a data URI holds no comma, after which its data would stand: data:image/png;base64,....")
    is_base64 = header.endswith(";base64")
    if len(data) * (3 if is_base64 else 4) // 4 > policy.max_bytes:
        raise MediaError(f"a data URI holds more than max_bytes={policy.max_bytes}; send a smaller file.")
    try:
        return base64.b64decode(data, validate=True) if is_base64 else urllib.parse.unquote_to_bytes(data)
    except (binascii.Error, ValueError) as err:
        raise MediaError(f"a data URI is no valid base64: {err}.") from err


def _file(name: str, policy: MediaPolicy) -> Path | bytes:
    if not policy.allow_files:
        raise MediaError(f"{describe(name)} is not read: files are not allowed here. Send the bytes as a data URI.")
    if name.startswith("file://"):
        parsed = urllib.parse.urlsplit(name)
        if parsed.netloc not in ("", "localhost"):
            raise MediaError(f"{describe(name)} names another machine; write file:///PATH.")
        name = urllib.parse.unquote(parsed.path)
    scheme, is_address, _ = name.partition("://")
    if is_address and not gcs.is_address(name):
        raise MediaError(
            f"{describe(name)} cannot be opened: addresses of the kind {scheme}:// are not supported; give a path, a "
            "data URI, or an address of the kind http://, https://, gs:// or file://."
        )
    if is_address or (gcs.is_address(policy.root or "") and not name.startswith("/")):
        return _object(name, policy)
    try:
        path = Path(policy.root or "", name)
        outside = policy.only_inside_root and not path.resolve().is_relative_to(Path(policy.root or "").resolve())
        # Devices and pipes would be read for ever.
        exists, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as err:
        # The text of an OSError would hold the whole name.
        reason = getattr(err, "strerror", None) or err
        if getattr(err, "errno", None) == errno.ENAMETOOLONG:
            reason = f"{reason}; if it is base64, write data:image/png;base64, before it"
        raise MediaError(f"{describe(name)} cannot be opened: {reason}.") from err
    if outside:
        raise MediaError(f"{describe(name)} lies outside {policy.root}, where all files must be; move it there.")
    if is_folder:
        raise MediaError(f"{describe(name)} is a folder; name a file in it.")
    if not exists:
        raise MediaError(f"there is no file {describe(name)}{f' in {policy.root}' if policy.root else ''}.")
    return path


def _object(name: str, policy: MediaPolicy) -> bytes:
    root, address = str(policy.root or "").rstrip("/"), name
    if not gcs.is_address(name):
        scheme, _, path = f"{root}/{name}".partition("://")
        # A bucket has no folders that "." and ".." could mean.
        address = f"{scheme}://{posixpath.normpath(path)}"
    if policy.only_inside_root and not (address.startswith(f"{root}/") and "/../" not in address):
        raise MediaError(f"{describe(name)} lies outside {policy.root}, where all files must be; move it there.")
    try:
        return gcs.read_bytes(address)
    except (OSError, ValueError) as err:
        raise MediaError(f"{describe(address)} cannot be read: {str(err).rstrip('.')}.") from err
