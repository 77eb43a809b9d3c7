"""Where final answers are found, and which are equal."""

import json

import pytest

from eval.scorers.exact_match import final_number, final_text, normalize
from tests.conftest import shared_dir


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("#### 18", "18"),
        ("16 - 3 = 13, then 2 more.\n#### 1,800 eggs, 3 left", "1800"),
        ("#### 5 * 3 = 15", "15"),
        ("first #### 1\nthen #### 2", "2"),
        (r"So \boxed{18} of 20.", "18"),
        (r"\boxed{\frac{1}{2} = 0.50}", "0.5"),
        (r"\boxed{3} no, \boxed{4}", "4"),
        (r"\boxed{12", "12"),
        (r"\boxed{none} in 7 tries", "7"),
        ("The answer is $18 for 3 days.", "18"),
        ("The answer is 2 * 9 = 18 dollars", "18"),
        ("**Answer:** 1,234.50", "1234.5"),
        ("Final ANSWER: -7", "-7"),
        ("answer is: 3.", "3"),
        ("#### 5\nThe answer is 6", "5"),
        ("The answer is 17. On second thought, the answer is 18.", "18"),
        ("\\boxed{17}\nOn second thought, 18.", "18"),
        ("答案是17。不对，应该是18。", "18"),
        ("The answer is\n42", "42"),
        ("She has 3 apples and 4 pears, 7 in all.", "7"),
        ("3-4", "4"),
        ("3 - 4 = -1", "-1"),
        ("it costs -$5.00", "-5"),
        ("it costs $-5", "-5"),
        ("minus sign: −7", "-7"),
        ("- 5 apples", "5"),
        ("1,2,3", "3"),
        ("12,345,678.90", "12345678.9"),
        ("1,2345", "2345"),
        ("it is .50", "0.5"),
        ("0.0", "0"),
        ("-0", "0"),
        ("007", "7"),
        ("no number", None),
        ("", None),
        ("#### none", None),
    ],
)
def test_final_number(response, number):
    assert final_number(response) == number


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("thinking\n#### Blue sky ", "Blue sky"),
        (r"it is \boxed{a {b} c}.", "a {b} c"),
        ("I think.\nThe answer is blue.", "blue."),
        ("line one\n\nlast line\n", "last line"),
        ("42", "42"),
        (" \n ", None),
        ("", None),
    ],
)
def test_final_text(response, text):
    assert final_text(response) == text


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("18", "18"),
        ("$1,234.50", "1234.5"),
        ("18.0", "18"),
        ("18.", "18"),
        ("-0.0", "0"),
        ("1,2", "1,2"),
        ('"Blue  Sky."', "blue sky"),
        ("**Yes**", "yes"),
        ("Mr. X", "mr. x"),
        ("5%", "5%"),
        ("", ""),
        ("9" * 40, "9" * 40),
    ],
)
def test_normalize(answer, form):
    assert normalize(answer) == form


def test_a_runaway_response_takes_linear_time():
    assert final_number("\\boxed{" * 20000) is None
    assert final_text("\\boxed{" * 20000 + "x}") == "x"


@pytest.mark.skipif(shared_dir() is None, reason="the GSM8K files are not beside this checkout")
def test_every_gsm8k_solution_yields_its_number():
    for split in ("train", "test"):
        for line in (shared_dir() / "data" / "gsm8k" / f"{split}.jsonl").read_text().splitlines():
            answer = json.loads(line)["answer"]
            assert final_number(answer) == answer.rpartition("#### ")[2].replace(",", "")
