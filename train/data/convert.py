"""The user's function from a row to a conversation: what it may be, how it is called, and by what it is known."""

import hashlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from train.data.rows import RowError
from train.data.values import kind, shown

Convert = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


def check_convert(convert: Convert, setting: str) -> None:
    """Checks that a function can be named in the run record and told from another one.

    Raises:
      ValueError: it is no plain function, or its source text cannot be found.
    """
    if not inspect.isfunction(convert):
        raise ValueError(
            f"{setting}={shown(convert)} is no function; write `def convert(row)` in the run file and give its name."
        )
    try:
        inspect.getsource(convert)
    except (OSError, TypeError) as err:
        raise ValueError(
            f"the source text of {setting}={shown(convert)} cannot be found; define it in a file."
        ) from err


def source_digest(convert: Convert) -> str:
    """Returns a short hash of the function's source text."""
    return hashlib.sha256(inspect.getsource(convert).encode()).hexdigest()[:12]


def converted(convert: Convert, row: Any) -> Mapping[str, Any]:
    """Returns what the function makes of a row.

    Raises:
      RowError: it leaves the row out, fails, or returns something else.
    """
    try:
        result = convert(row)
    except Exception as err:  # the function is not ours, so anything may come out of it
        place = _last_line(err, inspect.getsourcefile(convert))
        raise RowError("convert", f"data.convert raised {type(err).__name__}: {err} ({place})") from err
    if result is None:
        raise RowError("left_out", "data.convert left it out")
    if not isinstance(result, Mapping):
        raise RowError("convert", f"data.convert returned {kind(result)}, not an object such as {{'messages': [...]}}")
    return result


def _last_line(err: Exception, file: str | None) -> str:
    """Names the last line of the user's file that was running."""
    frames = traceback.extract_tb(err.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    return f"{frame.filename} line {frame.lineno}"
