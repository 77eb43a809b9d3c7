"""Makes JSONL, once, of files whose rows cannot be read by number: compressed ones, and arrays of JSON.

The copy is kept in the user's cache (`train.data.kept`). It is written as the file is read, so neither is ever in
memory. A row keeps its bytes: whether it is valid is found when it is read, as in any JSONL file.
"""

import contextlib
import gzip
import logging
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from train.data.kept import kept_file

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_SNIFFED = 1 << 16
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
# What decides where an element of an array ends. A string is one token, so that its brackets do not count; a quotation
# mark alone opens a string that goes on in the next block.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_DEEPER = {b"[": 1, b"{": 1, b"]": -1, b"}": -1, b",": 0}


Read = Callable[[int], bytes]


class Rows(NamedTuple):
    """Where the rows of a file can be read, and how they are counted."""

    path: Path
    unit: str
    """What a row is called together with its number: ``line``, or ``row`` of an array."""


def rows_of(path: Path) -> Rows:
    """Returns the JSONL form of a file; a file that has it already stays where it is.

    Raises:
      ValueError: the file is damaged, or its content is neither an array nor an object a line.
      OSError: it cannot be read, or the copy cannot be written.
    """
    packed = path.suffix in (".gz", ".zst")
    is_json = path.name.removesuffix(path.suffix if packed else "").endswith(".json")
    with _opened(path) as read, _damage_named(path):
        is_array = is_json and _is_array(read, path)
    unit = "row" if is_array else "line"
    if not packed and not is_array:
        return Rows(path, unit)
    kept = kept_file(path, "rows", ".jsonl")
    if not kept.is_file():
        logger.info("unpacking %s into %s", path, kept)
        _write(path, kept, _elements if is_array else _blocks)
    return Rows(kept, unit)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Read]:
    """Opens a file, unpacked, and yields what reads so many bytes of it."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError as err:
            raise ValueError(f"{path} is packed with Zstandard; `pip install zstandard` to read it.") from err
        opener = zstandard.open
    with opener(path, "rb") as file:
        yield file.read


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Names the file where what unpacks it finds it damaged or cut off."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise ValueError(f"{path} is damaged or cut off: {err}") from err
    except Exception as err:
        # zstandard's own error, whose class cannot be named without importing the package.
        if type(err).__module__.split(".")[0] == "zstandard":
            raise ValueError(f"{path} is damaged or cut off: {err}") from err
        raise


def _is_array(read: Read, path: Path) -> bool:
    """Tells whether a ``.json`` file holds an array; otherwise it must hold an object a line."""
    start = read(_SNIFFED).removeprefix(_BOM).lstrip(_SPACE)
    if start.startswith(b"["):
        return True
    if start.split(b"\n")[0].strip() == b"{":
        raise ValueError(
            f"{path} holds an object that goes over several lines; give an array of rows, or one row a line."
        )
    return False


def _write(path: Path, kept: Path, parts: Callable[[Read, Path], Iterator[bytes]]) -> None:
    partial = kept.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path) as read, partial.open("wb") as out:
            with _damage_named(path):
                for part in parts(read, path):
                    out.write(part)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(kept)
    except OSError as err:
        reason = f"{err.strerror or err} while {path} was unpacked; XDG_CACHE_HOME names another disk for the copy"
        raise OSError(err.errno, reason, str(kept.parent)) from err
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _blocks(read: Read, path: Path) -> Iterator[bytes]:
    while block := read(_BLOCK):
        yield block


def _elements(read: Read, path: Path) -> Iterator[bytes]:
    """Yields the elements of an array, each on a line of its own.

    Raises:
      ValueError: the brackets do not close, or something follows the array.
    """
    # `waiting` is what was read and not yielded; the tokens before `seen` have been looked at.
    waiting, seen, depth, number = b"", 0, 0, 0
    for block in _blocks(read, path):
        waiting += block
        start = 0
        for token in _TOKEN.finditer(waiting, seen):
            mark, seen = token[0], token.end()
            if mark == b'"':
                seen -= 1
                break
            if len(mark) > 1:
                continue
            before, depth = depth, depth + _DEEPER[mark]
            if before > 1 or depth > 1:
                continue
            content, start = waiting[start : token.start()].strip(_SPACE), seen
            if before == 0:
                if content.removeprefix(_BOM) or mark != b"[" or number:
                    raise ValueError(f"{path} holds something beside its array.")
                continue
            number += 1
            if content:
                # A row is a line. Inside a string a line break is no JSON, and neither is what stands for it here.
                yield content.replace(b"\n", b"\r") + b"\n"
            elif mark == b"," or number > 1:
                raise ValueError(f"{path} has nothing between two commas of its array, at row {number}.")
        else:
            seen = len(waiting)
        waiting, seen = waiting[start:], seen - start
    if depth:
        raise ValueError(f"{path} ends inside its array, after row {number}; it is cut off.")
    if waiting.strip(_SPACE):
        raise ValueError(f"{path} holds something behind its array.")
