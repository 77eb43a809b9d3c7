"""The letter that a response states: forms, words that look like letters, and any text at all."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scorers.choice import final_letter

# Every form of shared/cases/answers.md that a choice has, each with its dress.
STATED = [
    ('"answer": "C"', "C"),
    ('```json\n{"answer": "C"}\n```', "C"),
    ("{'answer': 'C'}", "C"),
    ('{"answer": "c"}', "C"),
    ('{"why": "A is wrong", "final_answer": "B) Paris"}', "B"),
    ("<answer>C</answer>", "C"),
    (r"\boxed{C}", "C"),
    (r"So $\boxed{\text{C}}$.", "C"),
    (r"\boxed{\text{(C)}}", "C"),
    (r"\boxed{\mathbf{D}}", "D"),
    (r"\boxed{C. Paris}", "C"),
    (r"\boxed C", "C"),
    (r"\boxed{C", "C"),
    (r"\fbox{B}", "B"),
    (r"\boxed{A} no, \boxed{B}", "B"),
    ("the answer is\n\n$$\\boxed{\\textbf{(D) } 5}$$", "D"),
    ("Answer: C", "C"),
    ("**Answer:** C", "C"),
    ("**Answer**: C", "C"),
    ("ANSWER: C.", "C"),
    ("Answer: (C)", "C"),
    ("Answer: $C$", "C"),
    ("Answer: [C]", "C"),
    ("Answer: `C`", "C"),
    ("Answer: C) Paris", "C"),
    ("Answer = D", "D"),
    ("Answer -> B", "B"),
    ("answer (C)", "C"),
    ("answer: b", "B"),
    ("### Answer\n\nC", "C"),
    ("Answer:\n\n**C**", "C"),
    ("> **Answer: C**", "C"),
    ("The answer is (C).", "C"),
    ("The answer is (c).", "C"),
    ("The correct answer is: **C. Paris**", "C"),
    ("the answer is therefore option B.", "B"),
    (r"The answer is \(C\).", "C"),
    (r"The correct answer is $\mathrm{(C)}$.", "C"),
    ("Final Answer: The final answer is (E)", "E"),
    ("Therefore, the correct statement is D.", "D"),
    ("答案：C", "C"),
    ("**答案：C**", "C"),
    ("正确答案为：Ｃ", "C"),
    ("答案是C。", "C"),
    ("因此，正确答案是选项B。", "B"),
    ("故选C。", "C"),
    ("所以选择 B", "B"),
    ("C是正确的", "C"),
    ("选项C正确", "C"),
    ("**C**", "C"),
    ("**C. Paris**", "C"),
    ("Option C", "C"),
    ("(C)", "C"),
    ("C.", "C"),
    ("C)", "C"),
    ("C. Paris", "C"),
    ("C", "C"),
    ("c", "C"),
    ("Ｃ", "C"),
    ("（Ｃ）", "C"),
    ("Ⓒ", "C"),
    ("𝐂", "C"),
    ("Let's see.\n\nC", "C"),
    ("So it must be C.", "C"),
    ("I'd go with B", "B"),
    ("I choose option D.", "D"),
    ("Taylor is best categorized as (B).", "B"),
    ("A holder is always entitled to A. Dividend carryovers.", "A"),
    ("Option A is incorrect. Option B is correct. Option C is wrong.", "B"),
    ("Option B fits. Option C is not right.", "B"),
    ("(A) is wrong, (B) is wrong, (C) is wrong, so (D).", "D"),
    ("A. x\nB. y\nC. z\nD. w\n\nB. y", "B"),
    ("1. First step\n2. Second\n\nAnswer: D", "D"),
]
CORRECTED = [
    ("The answer is B. Wait, no: D", "D"),
    ("Answer: B\n\nwait, no: D", "D"),
    ("Answer: B. Actually, it should be (D).", "D"),
    ("Answer: B. Actually, C is correct.", "C"),
    ("The answer is A... no, it's D.", "D"),
    ("Answer: B\nHmm, there is no option D.", "B"),
    ("Answer: B. Actually (A) looks good at first sight.", "B"),
    ('You must finish with "the answer is (A)". I pick B.', "B"),
]
WORDS = [
    ("A", "A"),
    ("Answer: A", "A"),
    ("Answer: A\nthis is because", "A"),
    ("The answer is A because it fits.", "A"),
    ("The answer is **A** dog", "A"),
    ("The answer is I.", "I"),
    ("I", "I"),
    ("A dog is a mammal.", None),
    ("**A dog** is here", None),
    ("Answer: A dog is a mammal.", None),
    ("To answer: A careful look", None),
    ("The answer is a number.", None),
    ("I think so", None),
    ("I am not sure. A hard one.", None),
    ("Answer: I think it is hard", None),
    ("Answer: I think it is B.", "B"),
]
NOT_STATED = [
    "",
    " \n",
    "Answer: A or B",
    "Answer: A, B, C, or D",
    "The answer is (A), (E), or (B).",
    "The answer is (D) and (E).",
    "答案：C、D",
    "不选C",
    "The answer is not C",
    "The answer is Z",
    "Answer: None of the above",
    '{"answer": null}',
    "Answer: C++",
    "Answer: B-cell",
    "Answer: Bélgica",
    "Vitamin C is good",
    "the ratio $[A]_{t}/[B]$ of (V)/(A), where",
    "A. Paris\nB. Rome\nC. Bern\nD. Oslo",
    "(A) Paris (B) Rome (C) Bern (D) Oslo",
    'Please show your choice in the `answer` field with only the choice letter, e.g., "answer": "C".',
    "The last line of your response should be in the format 'Answer: $LETTER'",
]


@pytest.mark.parametrize(("text", "letter"), [*STATED, *CORRECTED, *WORDS])
def test_the_letter_is_found(text, letter):
    assert final_letter(text, 10) == letter


@pytest.mark.parametrize("text", NOT_STATED)
def test_nothing_is_stated(text):
    assert final_letter(text, 4) is None


def test_letters_after_the_last_option_are_no_choice():
    assert final_letter("The answer is (E).", 5) == "E"
    assert final_letter("The answer is (E).", 4) is None
    assert final_letter("Answer: B\nAnswer: J", 4) == "B"


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet='ABab cI.,:;()[]{}*_`"\\\n>-answer是选答案不'), st.integers(1, 26))
def test_any_text_gives_a_letter_of_the_options_or_none(text, count):
    letter = final_letter(text, count)
    assert letter is None or (len(letter) == 1 and "A" <= letter <= chr(ord("A") + count - 1))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="xyz ,\n", max_size=200), st.sampled_from("ABCD"))
def test_the_last_statement_counts_whatever_stands_before(before, letter):
    assert final_letter(f"Answer: C\n{before}\nThe answer is ({letter}).", 4) == letter


@pytest.mark.parametrize(
    "unit",
    [
        "A ", "(", " ", "\n", "answer: A or ", r"\boxed{", r"\text{", "no, it, ", "A) x\n", "Option A is ", "选",
        "\ud800",
    ],
)  # fmt: skip
def test_a_million_characters_take_seconds(unit):
    text = (unit * 1_000_000)[:1_000_000]
    started = time.monotonic()
    final_letter(text, 10)
    # About 2 s where they are measured alone; time in the square of the length would be hours.
    assert time.monotonic() - started < 60
