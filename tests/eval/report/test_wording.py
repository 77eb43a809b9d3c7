"""How numbers and conditions are worded."""

import pytest

from eval.report.wording import amount, card, conditions, estimate, number, visible

SUMMARY = {"n": 12_032, "samples": 12_032, "max_new_tokens": 32_768, "sampling": {"temperature": 0.0, "top_k": 20}}
CARD = {"protocol": "card", "mode": "thinking"}


def test_shares_are_told_in_percent_and_other_numbers_as_they_are():
    assert estimate({"value": 0.665, "low": 0.6561, "high": 0.6738}) == "66.50 % [65.61, 67.38]"
    assert amount({"value": -0.25, "low": -1.0, "high": 0.5}) == "-0.25"
    assert (number(12_032), number(1234.56)) == ("12,032", "1,235")


def test_controls_can_be_seen():
    assert visible("a\x00\r\n\tb\x7f") == "a\u2400\u240d\n\tb\u2421"


@pytest.mark.parametrize(
    ("results", "summary", "told"),
    [
        ({}, {}, "protocol card · thinking · greedy · at most 32,768 tokens · no thinking budget · N 12,032"),
        ({"mode": "non_thinking"}, {}, "card · non-thinking · greedy · at most 32,768 tokens · N 12,032"),
        (
            {},
            {"sampling": {"temperature": 0.7, "top_p": 0.8, "detect_loops": True}},
            "temperature 0.7, top p 0.8, loops ended",
        ),
        ({}, {"sampling": {"thinking_budget": 64, "budget_close": "hard"}}, "thinking budget 64 tokens (hard) · N"),
        ({"style": "text", "mode": "non_thinking"}, {}, "at most 32,768 tokens · style text · N 12,032"),
        ({"style": "likelihood"}, {"cut": {"value": 0.0}}, "protocol card · style likelihood · N 12,032"),
        ({"mode": None}, {"sampling": None, "max_new_tokens": None}, "card · mode, sampling, budget not recorded · N"),
        ({}, {"sampling": None}, "card · thinking · at most 32,768 tokens · sampling not recorded · N 12,032"),
        ({"repeats": 4}, {}, "N 12,032 · 4 samples each"),
        ({"limit": 12, "repeats": 2}, {"n": 12}, "N 12, the first 12 of the data · 2 samples each"),
        ({"limit": 20_000, "repeats": 2}, {}, "N 12,032 · 2 samples each"),
        ({}, {"cut": {"unknown": 12_032, "value": 0.0, "low": 0.0, "high": 0.1}}, "N 12,032 · cut unknown"),
        ({}, {"cut": {"unknown": 7, "value": 0.5, "low": 0.4, "high": 0.6}}, "N 12,032 · cut 50.00 % [40.00, 60.00]"),
    ],
)
def test_conditions_tell_what_is_known(results, summary, told):
    assert told in conditions(CARD | results, SUMMARY | summary)


def test_a_score_is_told_beside_the_cards_figure():
    summary = {"card": {"published": 0.665, "difference": -0.0225, "verdict": "missed"}}
    assert card(summary) == "card 66.50 %, difference \u22122.25 points, missed"
