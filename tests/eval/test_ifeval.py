"""IFEval's verdicts: every kind of instruction, the two strictnesses, and what is left to chance."""

import json
import random
import sys
import types

import pytest

from eval.tasks import get_task, ifeval
from tests.conftest import shared_dir
from tests.eval.conftest import write_rows
from tests.eval.ifeval_responses import responses

ENGLISH = "the little boat sailed quietly over the lake while the children watched from the shore"
GERMAN = "Das kleine Boot segelte ruhig über den See, während die Kinder am Ufer standen und ihm nachsahen."
QUESTION = "Which is the tallest mountain?"

# instruction, arguments, a response that follows it, one that does not
CASES = [
    ("punctuation:no_comma", {}, "one and two", "one, two"),
    ("keywords:existence", {"keywords": ["oak", "elm"]}, "an Oak and an elm", "an oak"),
    ("keywords:frequency", {"keyword": "ant", "frequency": 2, "relation": "at least"}, "ant, Ant", "ant"),
    ("keywords:frequency", {"keyword": "ant", "frequency": 2, "relation": "less than"}, "ant", "ant ant"),
    ("keywords:forbidden_words", {"forbidden_words": ["bad"]}, "badly put", "so BAD!"),
    (
        "keywords:letter_frequency",
        {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
        "Quick quiz",
        "quiet",
    ),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "I saw Mr. X. He ran.",
        "No.",
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "Mr. X ran.", "He ran. So."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        "first\n\nweekend, at last",
        "weekend\n\nfirst",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [address]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. one more", "Bye. PS one more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and * *"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', '{"a": 1'),
    ("detectable_format:title", {}, "<<A boat>>\ntext", "<<>>\ntext"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": QUESTION}, f"{QUESTION} Everest.", "Everest."),
    ("startend:end_checker", {"end_phrase": "That is all."}, 'So it is. That is all."', "That is all. Bye."),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "NASA and ESA-X",
        "NASA",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH.capitalize()),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.capitalize()),
    ("startend:quotation", {}, '"wrapped"', '"open'),
]


def kinds():
    return [f"{name}-{index}" for index, (name, *_) in enumerate(CASES)]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES, ids=kinds())
def test_every_kind_of_instruction(verifiers, name, arguments, good, bad):
    instructions = ifeval.build_instructions(1, [name], [arguments])
    assert ifeval.follow_strict(instructions, good) == [True]
    assert ifeval.follow_loose(instructions, good) == [True]
    assert ifeval.follow_strict(instructions, bad) == [False]


def test_the_cases_cover_every_kind(verifiers):
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    assert {name for name, *_ in CASES} == set(INSTRUCTION_DICT)


def test_loose_forgives_introductions_farewells_and_emphasis(verifiers):
    wrapped = ifeval.build_instructions(1, ["startend:quotation"], [{}])
    for response in ('Sure:\n"text"', '"text"\nAnything else?', 'Sure:\n"text"\nBye', '**"text"**'):
        assert ifeval.follow_strict(wrapped, response) == [False]
        assert ifeval.follow_loose(wrapped, response) == [True]
    both = ifeval.build_instructions(1, ["startend:quotation", "punctuation:no_comma"], [{}, None])
    assert ifeval.follow_loose(both, '"a, b"') == [True, False]


@pytest.mark.parametrize("response", ["", " \n\t"])
def test_an_empty_response_follows_nothing(verifiers, response):
    instructions = ifeval.build_instructions(1, ["punctuation:no_comma"], [{}])
    assert ifeval.follow_strict(instructions, response) == ifeval.follow_loose(instructions, response) == [False]


def test_a_runaway_response_is_no_crash(verifiers):
    instructions = ifeval.build_instructions(1, ["detectable_format:json_format"], [{}])
    assert ifeval.follow_strict(instructions, "[" * 100_000) == [False]


def test_chance_depends_on_the_key_only(verifiers):
    arguments = {"letter": "!", "let_frequency": 6, "let_relation": "at least"}  # not a letter: one is drawn
    random.seed(3)
    expected = random.random()
    random.seed(3)
    letters = [
        ifeval.build_instructions(key, ["keywords:letter_frequency"], [arguments])[0].get_instruction_args()["letter"]
        for key in (1129, 1129, 1, 2, 3, 4)
    ]
    assert letters[0] == letters[1]
    assert len(set(letters)) > 1
    assert random.random() == expected, "the caller's random state is left alone"


def test_language_verdicts_repeat(verifiers):
    instructions = ifeval.build_instructions(1, ["language:response_language"], [{"language": "en"}])
    ambiguous = "ok hotel taxi no problem 1 2 3"
    assert len({ifeval.follow_strict(instructions, ambiguous)[0] for _ in range(20)}) == 1


ROW = {"key": 7, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "7"}, "key='7' is a str, expected int"),
        ({"prompt": None}, "prompt=None is a NoneType, expected str"),
        ({"instruction_id_list": []}, "0 instructions with 1 kwargs"),
        ({"kwargs": [{}, {}]}, "1 instructions with 2 kwargs"),
        ({"instruction_id_list": ["punctuation:none"]}, "'punctuation:none' does not exist; known ones are"),
        ({"kwargs": [{"words": 3}]}, "does not take {'words': 3}"),
        ({"kwargs": ["x"]}, "does not take 'x'"),
    ],
)
def test_wrong_rows_are_named_with_their_line(verifiers, tmp_path, change, message):
    write_rows(tmp_path / "ifeval" / "test.jsonl", [ROW, ROW | {"key": 8} | change])
    with pytest.raises(ValueError, match=r"test\.jsonl:2: ") as error:
        get_task("ifeval").load("official", str(tmp_path))
    assert message in str(error.value)


def test_absent_arguments_may_be_null_as_in_the_hub_columns(verifiers, tmp_path):
    arguments = {"num_words": 2, "relation": "at least", "language": None, "keywords": None}
    row = ROW | {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [arguments]}
    write_rows(tmp_path / "ifeval" / "train.jsonl", [row])
    (document,) = get_task("ifeval").load("official", str(tmp_path)).documents
    verdict = document.score("two words")
    assert verdict.correct and verdict.parsed and verdict.prediction is None
    assert set(verdict.metrics) == {f"{name}{ending}" for name in OFFICIAL for ending in ("", "_fixed")}


def test_missing_splitter_data_is_an_error_that_says_how_to_get_it(tmp_path, monkeypatch):
    """The verifiers would try to download it when they are imported, so this must come first."""
    nltk = pytest.importorskip("nltk", reason="needs the extra eval")
    monkeypatch.setattr(nltk.data, "path", [])
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match=r"punkt_tab .*nltk\.downloader.*NLTK_DATA") as error:
        ifeval.prepare(str(tmp_path))
    assert str(tmp_path / "nltk_data") in str(error.value)
    assert not any(name.startswith("lm_eval.tasks.ifeval") for name in sys.modules)


def test_missing_packages_are_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[eval\]'"):
        ifeval.prepare(None)


OFFICIAL = {
    "prompt_strict": "prompt_level_strict_acc",
    "instruction_strict": "inst_level_strict_acc",
    "prompt_loose": "prompt_level_loose_acc",
    "instruction_loose": "inst_level_loose_acc",
}


@pytest.mark.skipif(shared_dir() is None, reason="the IFEval prompts are not beside this checkout")
def test_verdicts_on_all_prompts_equal_those_of_lm_eval(verifiers, monkeypatch):
    """2,705 responses, every instruction, strict and loose; lm_eval is given the letters that are drawn here."""
    from lm_eval.tasks.ifeval import instructions
    from lm_eval.tasks.ifeval.utils import process_results

    data = shared_dir() / "data"
    documents = get_task("ifeval").load("official", str(data)).documents
    rows = [json.loads(line) for line in (data / "ifeval" / "input_data_541.jsonl").read_text().splitlines()]
    problems = (data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:400]
    sentences = [json.loads(line)["question"].split(". ")[0].strip() + "." for line in problems]
    assert [document.messages[0]["content"] for document in documents] == [row["prompt"] for row in rows]
    followed = dict.fromkeys(OFFICIAL, 0)
    of_first = 0
    for document, row in zip(documents, rows, strict=True):
        with monkeypatch.context() as patch:
            built = ifeval.build_instructions(row["key"], row["instruction_id_list"], row["kwargs"])
            drawn = [each.get_instruction_args()["letter"] for each in built if hasattr(each, "_letter")]
            patch.setattr(instructions, "random", types.SimpleNamespace(choice=lambda letters, drawn=drawn: drawn[0]))
            for place, response in enumerate(responses(row, sentences, seed=0)):
                metrics = document.score(response).metrics
                wanted = process_results(row, [response])
                for ours, theirs in OFFICIAL.items():
                    values = wanted[theirs] if isinstance(wanted[theirs], list) else [wanted[theirs]]
                    assert metrics[ours] == values, (row["key"], response)
                    followed[ours] += sum(values)
                of_first += sum(metrics["instruction_strict"]) if place == 0 else 0
    assert len(documents) == 541
    assert of_first > 700, "the first response is made to follow"
    assert 900 < followed["instruction_strict"] < followed["instruction_loose"] < 5 * 834
