"""Figures that are known between two ends only."""

from typing import NamedTuple


class Range(NamedTuple):
    """Two ends between which a figure lies."""

    low: float
    high: float

    def times(self, factor: float) -> "Range":
        """Returns the range of a multiple."""
        return Range(self.low * factor, self.high * factor)

    def to_text(self, form: str = ",.0f") -> str:
        """Returns both ends, or one number where they look the same."""
        ends = [format(end, form) for end in self]
        return " to ".join(dict.fromkeys(ends))


def rate(amount: float, seconds: Range) -> Range:
    """Returns how much of an amount is done a second."""
    return Range(amount / seconds.high, amount / seconds.low)
