"""The geometry of the pictures."""

import pytest

from eval.report.charts import curve, histograms, strip

LENGTHS = {
    "mean": 1000.4, "p50": 700, "p90": 2500, "p99": 32768, "max": 32768, "edges": [0, 10, 100, 1000, 32768],
    "right": [0, 5, 20, 10], "wrong": [0, 0, 0, 0], "cut": [0, 0, 0, 7],
}  # fmt: skip


def test_a_strip_runs_from_0_to_1():
    ends = strip({"value": 0.5, "low": 0.0, "high": 1.0})
    assert (ends.low, ends.value, ends.high, ends.card) == (2, 50, 98, None)
    marked = strip({"value": 0.25, "low": 0.2, "high": 0.3}, {"card": {"published": 0.75}})
    assert (marked.value, marked.card) == (26, 74)
    assert marked.words == "25.00 %, 95 % interval [20.00, 30.00]; the model card says 75.00 %"
    assert strip({"value": 12.0, "low": 8.0, "high": 16.0}) is None


def test_bars_are_as_high_as_their_counts():
    drawn = histograms(LENGTHS)
    assert [(row.kind, row.count, row.most) for row in drawn.rows] == [("right", 35, 20), ("cut", 7, 7)]
    right, cut = (row.bars for row in drawn.rows)
    assert [bar.left for bar in right] == [25, 50, 75]
    assert [bar.height for bar in right] == [14, 56, 28]
    assert all(bar.top + bar.height == 56 for bar in [*right, *cut])
    assert cut[0].words == "1,000 to 32,768 tokens: 7 cut off"
    assert [(tick.place, tick.label) for tick in drawn.ticks][::-1] == [
        (0, "0"), (25, "10"), (50, "100"), (75, "1,000"), (100, "32.8k"),
    ]  # fmt: skip
    assert drawn.summary.startswith("mean 1,000, half at most 700, 90 % at most 2,500")
    assert histograms(None) is None


def test_many_bins_have_few_labels():
    wide = LENGTHS | {"edges": list(range(48)), "right": [1] * 47, "cut": [0] * 47, "wrong": [0] * 47}
    ticks = histograms(wide).ticks
    assert len(ticks) <= 6 and (ticks[0].place, ticks[0].label) == (100, "47")


def points(*values):
    budgets = (256, 1024, 4096)
    return [
        {"budget": budget, "value": value, "low": value / 2, "high": value + 0.1}
        for budget, value in zip(budgets, values, strict=True)
    ]


def test_the_curve_stands_on_a_logarithmic_axis():
    drawn = curve({"curve": points(0.1, 0.2, 0.3), "thinking_curve": points(0.2, 0.2, 0.3), "card": {"published": 0.4}})
    response, thought = drawn.lines
    # The top of the axis is the next fifth over the card's 40 %.
    assert [tick.label for tick in drawn.up] == ["0 %", "15 %", "30 %", "45 %", "60 %"]
    assert response.points == "0.00,83.33 50.00,66.67 100.00,50.00"
    assert response.band == "0.00,66.67 50.00,50.00 100.00,33.33 100.00,75.00 50.00,83.33 0.00,91.67"
    assert drawn.dots[1][:2] == (55, 150) and drawn.dots[1][2] == "1,024 tokens: 20.00 % [10.00, 30.00]"
    assert thought.points.startswith("0.00,66.67")
    assert drawn.card.place == pytest.approx(80) and drawn.card.label == "model card 40.00 %"
    assert drawn.rows[0] == ("256", ["10.00 % [5.00, 20.00]", "20.00 % [10.00, 30.00]"])
    assert [tick.label for tick in drawn.across] == ["256", "1,024", "4,096"]


def test_a_curve_needs_points_that_are_shares():
    assert curve({}) is None and curve({"curve": []}) is None
    assert curve({"curve": [{"budget": 10, "value": 31.0, "low": 20.0, "high": 41.0}]}) is None
    one = curve({"curve": [{"budget": 10, "value": 1.0, "low": 0.5, "high": 1.0}]})
    assert one.lines[0].points == "50.00,0.00" and one.up[-1].label == "100 %"
