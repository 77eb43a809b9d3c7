"""Where the lines, bars and words of the page's pictures stand.

Places across are in percent of a picture's width and places down are in pixels, so that words keep their size on every
screen.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from eval.cells import is_share, share
from eval.report.wording import amount, estimate, interval, number, published

KINDS = {"right": "right", "wrong": "wrong", "cut": "cut off"}
_BARS_HEIGHT = 56
_CURVE_LEFT, _CURVE_WIDTH = 12.0, 86.0
_CURVE_TOP, _CURVE_HEIGHT = 10.0, 210.0
_MOST_TICKS = 6


@dataclasses.dataclass(frozen=True)
class Strip:
    """A share with its interval on the line from 0 to 1, and perhaps the card's figure; places in percent."""

    value: float
    low: float
    high: float
    card: float | None
    words: str


@dataclasses.dataclass(frozen=True)
class Tick:
    """A label of an axis; ``place`` in percent across, in pixels down."""

    place: float
    label: str
    anchor: str = "middle"


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of a histogram: left and width in percent, top and height in pixels."""

    left: float
    width: float
    top: float
    height: float
    words: str


@dataclasses.dataclass(frozen=True)
class Histogram:
    """The lengths of the responses of one kind; ``most`` is the highest bar's count."""

    kind: str
    name: str
    count: int
    most: int
    bars: list[Bar]
    words: str


@dataclasses.dataclass(frozen=True)
class Histograms:
    """Histograms over the same bins, with what all lengths together are like."""

    rows: list[Histogram]
    ticks: list[Tick]
    summary: str


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the curve and its interval, as SVG points in a box of 100 by 100."""

    kind: str
    name: str
    points: str
    band: str


@dataclasses.dataclass(frozen=True)
class Curve:
    """Score against budget: its lines, its axes, the height of the card's figure, and its numbers as rows.

    The dots of the first line are places in percent across and in pixels down, with words.
    """

    lines: list[Line]
    dots: list[tuple[float, float, str]]
    across: list[Tick]
    up: list[Tick]
    card: Tick | None
    words: str
    rows: list[tuple[str, list[str]]]


def strip(metric: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> Strip | None:
    """Returns the picture of an estimate; None where it is no share.

    Args:
      summary: the task's, if the card's figure is to be marked.
    """
    if not is_share(metric):
        return None
    card = None if summary is None else published(summary)
    words = f"{amount(metric)}, 95 % interval {interval(metric)}"
    words += "" if card is None else f"; the model card says {share(card)}"
    value, low, high = (_share_place(metric[name]) for name in ("value", "low", "high"))
    return Strip(value, low, high, None if card is None else _share_place(card), words)


def _share_place(share: float) -> float:
    # Marks at 0 and at 1 need room beside them.
    return round(2 + 96 * share, 2)


def histograms(lengths: Mapping[str, Any] | None) -> Histograms | None:
    """Returns the pictures of ``lengths`` of results.json; None without it."""
    if lengths is None:
        return None
    edges = lengths["edges"]
    rows = [_histogram(kind, edges, lengths[kind]) for kind in KINDS if any(lengths[kind])]
    last = len(edges) - 1
    ticks = [_tick(place, edges) for place in range(last, -1, -math.ceil(last / (_MOST_TICKS - 1)))]
    summary = (
        f"mean {round(lengths['mean']):,}, half at most {round(lengths['p50']):,}, 90 % at most "
        f"{round(lengths['p90']):,}, 99 % at most {round(lengths['p99']):,}, longest {round(lengths['max']):,} tokens"
    )
    return Histograms(rows, ticks, summary)


def _tick(place: int, edges: Sequence[float]) -> Tick:
    last = len(edges) - 1
    anchor = "start" if place == 0 else "end" if place == last else "middle"
    return Tick(round(100 * place / last, 2), _short(edges[place]), anchor)


def _short(tokens: float) -> str:
    return f"{round(tokens):,}" if tokens < 10_000 else f"{tokens / 1000:.3g}k"


def _histogram(kind: str, edges: Sequence[float], counts: Sequence[int]) -> Histogram:
    most, width, name = max(counts), 100 / len(counts), KINDS[kind]
    bars = []
    for place, count in enumerate(counts):
        if count:
            height = round(max(1.0, _BARS_HEIGHT * count / most), 1)
            words = f"{round(edges[place]):,} to {round(edges[place + 1]):,} tokens: {count:,} {name}"
            left, wide = round(place * width, 3), round(0.9 * width, 3)
            bars.append(Bar(left, wide, round(_BARS_HEIGHT - height, 1), height, words))
    top = counts.index(most)
    words = (
        f"{sum(counts):,} responses; the highest bar, {most:,}, stands from {round(edges[top]):,} to "
        f"{round(edges[top + 1]):,} tokens"
    )
    return Histogram(kind, name, sum(counts), most, bars, words)


def curve(summary: Mapping[str, Any]) -> Curve | None:
    """Returns the picture of ``curve`` and ``thinking_curve`` of results.json.

    Returns:
      None without a curve, and for a score that is no share.
    """
    points = summary.get("curve")
    if not points or not all(map(is_share, points)):
        return None
    series = {"response": points}
    if summary.get("thinking_curve"):
        series["thought"] = summary["thinking_curve"]
    names = {"response": "budget of the whole response", "thought": "budget of the thinking alone"}
    budgets = sorted({point["budget"] for each in series.values() for point in each})
    card_says = published(summary)
    top = _ceiling(max([point["high"] for each in series.values() for point in each] + [card_says or 0.0]))
    lines = [_line(kind, names[kind], each, budgets, top) for kind, each in series.items()]
    step = top / 4
    up = [Tick(_height(step * place, top), f"{100 * step * place:g} %", "end") for place in range(5)]
    card = None if card_says is None else Tick(_height(card_says, top), f"model card {share(card_says)}")
    shown = [points[round(place * (len(points) - 1) / 4)] for place in range(5)] if len(points) > 5 else points
    words = "; ".join(f"at {point['budget']:,} tokens {amount(point)}" for point in shown)
    by_budget = [{point["budget"]: estimate(point) for point in each} for each in series.values()]
    rows = [(number(budget), [each.get(budget, "") for each in by_budget]) for budget in budgets]
    dots = [
        (
            _place(point["budget"], budgets),
            _height(point["value"], top),
            f"{point['budget']:,} tokens: {estimate(point)}",
        )
        for point in points
    ]
    return Curve(lines, dots, _budget_ticks(budgets), up, card, words, rows)


def _ceiling(share: float) -> float:
    """Returns the top of the axis: the next multiple of a fifth, whose quarters make even labels."""
    return min(1.0, math.ceil(share * 5 + 1e-9) / 5)


def _line(kind: str, name: str, points: Sequence[Mapping[str, Any]], budgets: Sequence[int], top: float) -> Line:
    def box(budget: int, share: float) -> str:
        return f"{100 * _across(budget, budgets):.2f},{100 - 100 * share / top:.2f}"

    upper = [box(point["budget"], min(top, point["high"])) for point in points]
    lower = [box(point["budget"], point["low"]) for point in points]
    middle = [box(point["budget"], point["value"]) for point in points]
    return Line(kind, name, " ".join(middle), " ".join([*upper, *reversed(lower)]))


def _across(budget: int, budgets: Sequence[int]) -> float:
    """Returns the place of a budget between the least and the largest, by its logarithm where they are far apart."""
    low, high = budgets[0], budgets[-1]
    if low == high:
        return 0.5
    if low > 0 and high >= 16 * low:
        return math.log(budget / low) / math.log(high / low)
    return (budget - low) / (high - low)


def _place(budget: int, budgets: Sequence[int]) -> float:
    return round(_CURVE_LEFT + _CURVE_WIDTH * _across(budget, budgets), 2)


def _height(share: float, top: float) -> float:
    return round(_CURVE_TOP + _CURVE_HEIGHT * (1 - share / top), 1)


def _budget_ticks(budgets: Sequence[int]) -> list[Tick]:
    """Returns labels of some budgets, none closer to the next than a sixth of the width."""
    ticks: list[Tick] = []
    for budget in reversed(budgets):
        place = _place(budget, budgets)
        if not ticks or ticks[-1].place - place >= _CURVE_WIDTH / _MOST_TICKS:
            ticks.append(Tick(place, _short(budget), "middle" if ticks else "end"))
    return ticks[::-1]
