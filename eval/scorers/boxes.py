"""Boxes of objects in a response: the first one counts, in thousandths of the picture's width and height."""

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of the picture's width and height."""

# What the width and the height of the picture count in a response.
_SCALE = 1000.0
_NUMBER = r"([-+]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][-+]?\d++)?)"
_GAP = r"(?:\s*+,\s*+|\s++)"
# Four numbers in brackets, or two points of two numbers; longer rows of numbers are no box.
_BOX = re.compile(
    rf"[\[(]\s*{_NUMBER}{_GAP}{_NUMBER}{_GAP}{_NUMBER}{_GAP}{_NUMBER}\s*[\])]"
    rf"|[\[(]\s*{_NUMBER}{_GAP}{_NUMBER}\s*[\])]\s*,?\s*[\[(]\s*{_NUMBER}{_GAP}{_NUMBER}\s*[\])]"
)


def first_box(response: str) -> Box | None:
    """Returns the first box of a response, cut at the picture's edges; None where it has none.

    It is ``[left, top, right, bottom]``, in any JSON or text around it, or ``(left, top), (right, bottom)``. Ends in
    the wrong order are put right.
    """
    found = _BOX.search(response)
    if found is None:
        return None
    return as_box([float(number) / _SCALE for number in found.groups() if number is not None])


def as_box(ends: Sequence[float]) -> Box:
    """Returns four ends as a box inside the picture."""
    left, top, right, bottom = (min(max(end, 0.0), 1.0) for end in ends)
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def overlap(a: Box, b: Box) -> float:
    """Returns the area that two boxes share divided by the area that they cover together (IoU)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    together = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    return shared / together
