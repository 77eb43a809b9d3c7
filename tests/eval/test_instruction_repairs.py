"""Repaired verifiers of IFEval beside the official ones: each differs where the official code is wrong."""

import pytest

from eval.scorers.instruction_repairs import repair
from eval.tasks import ifeval

ENGLISH = "THE TOTAL COST OF THE TRIP IS PAID."

# instruction, arguments, response, official verdict, repaired verdict
CASES = [
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
        "#a #b",
        False,
        True,
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": "less than"},
        "a!b!",
        True,
        False,
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "---\n* a\n* **b:** c\n\n---", False, True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "*so* it is\n- a\n-5 degrees", False, True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "- a\n  * b", True, True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "2 * 3 * 4", True, False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "* **so**", True, False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 3}, "*a* b **c d** ***e***", True, True),
    ("language:response_language", {"language": "de"}, "123 456", True, False),
]
FIRST_WORD = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Summary"}
CASES += [
    ("length_constraints:nth_paragraph_first_word", FIRST_WORD, "one\n\nSummary: two", False, True),
    ("length_constraints:nth_paragraph_first_word", FIRST_WORD, "\n\none\n\nsummary two", False, True),
    ("length_constraints:nth_paragraph_first_word", FIRST_WORD, "one\n\nsummary-like two", False, False),
    ("length_constraints:nth_paragraph_first_word", FIRST_WORD, "one\n\nsummary two\n\nthree", False, False),
]


@pytest.mark.parametrize(("name", "arguments", "response", "official", "repaired"), CASES)
def test_a_repair_differs_where_the_official_code_is_wrong(verifiers, name, arguments, response, official, repaired):
    # Seeded with a key under which the letter that is drawn is in none of the responses.
    built = ifeval.build_instructions(2, [name], [arguments])
    mended = repair(name, arguments)
    assert mended is not None
    if "letter" not in arguments:
        assert ifeval.follow_strict(built, response) == [official]
    assert ifeval.follow_strict([mended], response) == [repaired]


def test_capitals_are_detected_as_small_letters(verifiers):
    import langdetect

    sentences = [
        "Natalia sold clips to 48 of her friends in April.", "Weng earns 12 dollars an hour for babysitting.",
        "James writes a letter to two friends twice a week.", "Ken created a care package to send to his brother.",
        "Tina makes 18 dollars an hour.", "A deep sea monster rises from the waters once every hundred years.",
        "Alexis is applying for a new job.", "Toula went to the bakery and bought pastries.",
    ]  # fmt: skip
    mended = repair("change_case:english_capital", None)
    assert mended is not None
    capitals = sum(langdetect.detect(sentence.upper()) == "en" for sentence in sentences)
    assert sum(mended.check_following(sentence.upper()) for sentence in sentences) > capitals
    assert not mended.check_following(sentences[0])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}),
        ("punctuation:no_comma", None),
        ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}),
    ],
)
def test_other_instructions_need_no_repair(name, arguments):
    assert repair(name, arguments) is None
