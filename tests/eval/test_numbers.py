"""Numbers in every form that people write: a table of answers, and what holds for any text."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scorers.exact_match import final_number, final_text, normalize
from eval.scorers.numbers import first_number, last_number, number
from tests.linear_time import assert_linear

TABLE = [
    json.loads(line)
    for line in (Path(__file__).parent / "number_answers.jsonl").read_text(encoding="utf-8").split("\n")
    if line
]
PIECES = [
    "18", "-3", "1,234", "0.5", "٣", "½", "²", "{", "}", "\\boxed{", "\\boxed ", "\\fbox{", "\\frac{1}{2}", "\\frac",
    "^", "_",
    "$", "\\$", "####", "#### ", "The answer is ", "Answer:", "answer\n", "答案：", '"answer": ', "wait, no: ",
    "Actually ",
    "\\text{", "\\,", "\\!", "\\times 10^{", "e5", "/", "/0", "*", "**", "`", ">", "\n", "\n1. ", "Step 2:", "=",
    ".", ",", " ",
    "\u00a0", "\x00", "\ud800", "５", "%", "’", "\\",
]  # fmt: skip


def test_the_table_covers_every_form():
    assert len(TABLE) >= 200
    assert len({row["response"] for row in TABLE}) == len(TABLE)
    assert {row["form"] for row in TABLE} == {
        "thousands", "signs", "decimals", "fractions", "percent", "dress", "boxes", "hashes", "statements",
    "corrections",
        "no answer",
    }  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=[f"{row['form']}-{place}" for place, row in enumerate(TABLE)])
def test_the_number_of_an_answer(row):
    assert final_number(row["response"]) == row["expected"]


@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)))
@settings(max_examples=600, deadline=None)
def test_any_text_has_a_verdict(text):
    found = final_number(text)
    assert found is None or number(found) == found
    assert final_text(text) is None or final_text(text).strip()
    assert normalize(normalize(text)) == normalize(text) or number(text) is None


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_equal_numbers_have_equal_forms(digits, places):
    value = Fraction(digits, 10**places)
    plain = f"{digits / 10**places:.{places}f}" if abs(digits) < 10**15 else str(digits)
    expected = number(plain)
    assert expected is not None and Fraction(expected) == value
    sign, magnitude = ("-", plain[1:]) if plain.startswith("-") else ("", plain)
    whole, _, decimals = magnitude.partition(".")
    grouped = f"{int(whole):,}" + (f".{decimals}" if decimals else "")
    written = [
        grouped,
        grouped.replace(",", " "),
        grouped.replace(",", "{,}"),
        grouped.replace(",", r"\,"),
        f"{magnitude}00",
    ]
    for form in written if decimals else written[:-1]:
        assert number(sign + form) == expected, form
    assert number(f"{digits}/{10**places}") == expected
    assert number(rf"{sign}\frac{{{abs(digits)}}}{{{10**places}}}") == expected
    assert number(rf"{digits} \times 10^{{-{places}}}") == expected
    assert final_number(rf"So \(\boxed{{{sign}\${grouped}}}\) for 3 days.") == expected


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [("CO2 and x_1", "2", "1"), ("CO2 and 18", "18", "18"), ("the 3rd of 7 cm^2", "7", "7"), ("none", None, None)],
)
def test_names_give_way_to_numbers(text, first, last):
    assert (first_number(text), last_number(text)) == (first, last)


UNITS = [
    "A ", "{", "}", "\\boxed{", "\\boxed{}", "\\boxed{1}", "\\boxed ", "\\frac{", "7", "1,234", "1 ", "1.000.",
    "1,00,", "1/", "½",
    "#", "#### ", "#### 1 ", "#### Step 1:\n", "the answer is ", "answer\n", "Answer:\n\n", '"answer is ',
    "wait no ", "no, ",
    "1. a\n", "> 1\n", "**1**", "\n   ", "\\", "10^2", "x 10^", "_",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_a_runaway_text_takes_linear_time(unit):
    assert_linear(lambda text: (final_number(text), final_text(text), normalize(text)), unit)


def test_nested_boxes_take_linear_time():
    assert final_number("\\boxed{" * 60_000 + "18" + "}" * 60_000) == "18"
    assert_linear(lambda text: final_number(text + "18" + "}" * text.count("{")), "\\boxed{")
