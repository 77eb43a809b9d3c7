"""SuperGPQA's extraction: against its authors' own regular expressions on short texts, and its time on long ones."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scorers.option_patterns import stated_letter
from tests.linear_time import assert_linear

OPTIONS = ["iron", "solid gold", "tin", "$x^2$"]

# How eval.py of github.com/SuperGPQA/SuperGPQA writes what may stand around an answer; with nested repetitions.
BEFORE = r"(?:[\*\$\{(\[\\(]*?(?:(?:\\boxed|\\mathbf|\\mathrm|\\text){)?)*\s*"
AFTER = r"(?:\\?\}?\$?\)?\]?\}?)*(?:[\s:\.\*)]|$)"
STATEMENT = r"[Tt]he\s+(?:\w+\s+)?(?:answer|option)(?:\w+\s+)?\s+is"


def authors_letter(text, options):
    letter = first_of(text, [rf"{STATEMENT}?:?\s*", r"(?i:Answer)[\*\s]*:\s*", r"^[^\w\r\n]*"], "[A-J]", re.IGNORECASE)
    if letter is not None:
        return letter
    texts = "|".join(map(re.escape, options))
    option = first_of(text, [rf"{STATEMENT}:?\s*", r"(?i:Answer)\s*", r"^[^\w\r\n]*"], texts)
    return "ABCDEFGHIJ"[options.index(option)] if option else None


def first_of(text, heads, answer, flags=0):
    text = text.rstrip()
    for passage in (text.split("\n")[-1], text):
        for head in heads:
            if found := re.search(f"{head}{BEFORE}({answer}){AFTER}", passage, flags):
                return found[1]
    return None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"), ("ANSWER: (C):", "C"), ("answer: $\\boxed{D}$.", "D"), ("**Answer:** A", "A"),
        ("**Answer: B**", "B"), ("Answer: \\text{C}", "C"), ("Answer:\n\nJ", "J"), ("Answer : B", "B"),
        ("The final answer to this question is: A.", None), ("The correct answer is (C).", "C"),
        ("The best option is $\\boxed{B}:", "B"), ("the answer is **D**", "D"), ("The answer is B, not C", None),
        ("So the answer is:\nE", "E"), ("The answer is\\ F", "F"), ("the option is [G]", "G"), ("B", "B"),
        ("(C).", "C"),
        ("$\\boxed{B}$", "B"), ("[D]:", "D"), ("\\boxed{\\text{A}}", "A"), ("Answer: K", None), ("Answer: AB", None),
        ("I think so.", "I"), ("So I think.", None), ("A good guess is tin", "A"), ("a", "a"), ("Answer: b", "b"),
        ("", None),
        ("  \n ", None),
        ("Answer: A\nThat is all.", "A"), ("Answer: A\nAnswer: B", "B"), ("Answer: A\nAnswer: B\nSo it is.", "A"),
        ("At first A seems right.\nAnswer: C", "C"), ("B) solid gold", "B"), ("B. solid gold", "B"),
        ("The answer is iron.", "A"), ("the correct option is solid gold", "B"), ("Answer solid gold", "B"),
        ("Answer: solid gold", None), ("$x^2$", "D"), ("The answer is $x^2$.", "D"), ("tin", "C"), ("**tin**", "C"),
        ("tinsel", None), ("The answer is \\boxed{tin}", "C"), ("答案：C", None), ("“C”", None), ("```\nC\n```", "C"),
        ('"answer": "C"', None), ("Ａ", None), ("The answer is “B”", None), ("Answer: C ", "C"),
        ("Final answer: **C**", "C"),
    ],
)  # fmt: skip
def test_forms(text, letter):
    assert stated_letter(text, OPTIONS) == letter
    assert authors_letter(text, OPTIONS) == letter


PIECES = [
    "The", "the", "THE", " ", "  ", "\n", "\r", "\t", "correct ", "answer", "option", "Answer", "is", "is:", "i", ":",
    "*",
    "$", "(", "[", "{", "\\", "\\boxed{", "\\text{", "\\mathbf{", "\\mathrm", "}", ")", "]", ".", ",", "A", "B", "J",
    "K", "b",
    "x", "1", '"', "-", "final ", "answers", "ſ", "İ", "x y", "$x$", "(1", "1}", "\\frac", "x.", "The answer is",
    "Answer: ",
]  # fmt: skip
STRANGE_OPTIONS = [
    "x", "$x$", "(1", "1}", "\\frac", "x y", "x.", "*", "A B", "\\boxed{1}", "$", "{", ": x", "\\", "[x]", "1",
    "\\text{x}",
    "}", ")", " x", "K", "",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_any_text_reads_as_the_authors_patterns_read_it(seed):
    rng = random.Random(seed)
    found = 0
    for _ in range(1500):
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 14)))
        options = rng.sample(STRANGE_OPTIONS, rng.randint(2, 6))
        expected = authors_letter(text, options)
        assert stated_letter(text, options) == expected, (text, options)
        found += expected is not None
    assert found > 100


@settings(max_examples=300, deadline=None)
@given(st.text(), st.lists(st.text(), min_size=2, max_size=10))
def test_no_text_raises(text, options):
    letter = stated_letter(text, options)
    assert letter is None or len(letter) == 1


@pytest.mark.parametrize(
    "piece",
    [
        "$", "(", "\\", "}", " ", "\n ", "A ", "the ", "the answer is ", "The answer is ", "the answer is (", "answer",
        "answer:",
        "Answer: $\\boxed{", "\\boxed{", "The answerx  is ", "answer * ", "w", "w ", "The answer is $", ")", "1", "Ａ",
    ],
)  # fmt: skip
def test_time_is_linear(piece):
    options = ["$", "((", "\\", "}", "the answer is", " ", "\\boxed{", "x", "$$$$$$", "1"]
    assert_linear(lambda text: stated_letter(text, options), piece, end="z")


@pytest.mark.parametrize("piece", ["the answer is ((", "A ", "$\\boxed{"])
def test_a_text_of_a_megabyte(piece):
    assert stated_letter(piece * (1_000_000 // len(piece)) + "\nAnswer: C", OPTIONS) == "C"
