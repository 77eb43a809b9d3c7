"""How numbers and conditions are worded."""

import pytest

from eval.report.wording import amount, card, conditions, estimate, number, visible

SUMMARY = {"n": 12_032, "protocol": "card", "max_new_tokens": 32_768}


def test_shares_are_told_in_percent_and_other_numbers_as_they_are():
    assert estimate({"value": 0.665, "low": 0.6561, "high": 0.6738}) == "66.50 % [65.61, 67.38]"
    assert amount({"value": -0.25, "low": -1.0, "high": 0.5}) == "-0.25"
    assert (number(12_032), number(1234.56)) == ("12,032", "1,235")


def test_controls_can_be_seen():
    assert visible("a\x00\r\n\tb\x7f") == "a\u2400\u240d\n\tb\u2421"


@pytest.mark.parametrize(
    ("results", "sampling", "told"),
    [
        ({}, None, "protocol card · at most 32,768 tokens · N 12,032"),
        ({"mode": "non_thinking"}, {"temperature": 0.0, "top_k": 20}, "non-thinking · greedy · at most"),
        ({}, {"temperature": 0.7, "top_p": 0.8, "detect_loops": True}, "temperature 0.7, top p 0.8, loops ended"),
        ({"mode": "thinking"}, {}, "greedy · at most 32,768 tokens · no thinking budget"),
        ({}, {"thinking_budget": 64, "budget_close": "hard"}, "thinking budget 64 tokens (hard) · N"),
        ({"style": "likelihood", "repeats": 1}, None, "protocol card · style likelihood · at most"),
        ({"repeats": 4}, None, "N 12,032 · 4 samples each"),
    ],
)
def test_conditions_tell_what_is_known(results, sampling, told):
    assert told in conditions(results, SUMMARY | ({} if sampling is None else {"sampling": sampling}))


@pytest.mark.parametrize("published, difference", [(66.5, -2.25), (0.665, -0.0225)])
def test_a_missed_figure_is_told_with_the_share_that_was_cut(published, difference):
    cut = {"value": 0.1, "low": 0.05, "high": 0.15}
    told = {"published": published, "difference": difference, "inside": False, "note": "another prompt"}
    words = "card 66.5 %, difference \u22122.25 points, outside the interval, 10.00 % [5.00, 15.00] cut, another prompt"
    assert card({"card": told, "cut": cut}) == words
    inside = told | {"inside": True, "note": None}
    assert card({"card": inside, "cut": cut}) == "card 66.5 %, difference \u22122.25 points, inside the interval"
