"""SuperGPQA: its prompts, and which answers are right."""

import pytest

from eval.tasks import get_task, supergpqa
from eval.tasks.choices import CARD_REQUEST
from tests.eval.conftest import write_rows

# shared/eval.md 2.4 quotes it from config/prompt/zero-shot.yaml.
INSTRUCTION = (
    "Answer the following multiple choice question. There is only one correct answer. The last line of your response "
    "should be in the format 'Answer: $LETTER' (without quotes), where LETTER is one of A, B, C, D, E, F, G, H, I, or "
    "J."
)


def row(**changes):
    return {
        "uuid": "u0", "question": "What is heavy?", "options": ["air", "lead", "wool", "hope", "light"],
        "answer": "lead",
        "answer_letter": "B", "discipline": "Science", "field": "Physics", "subfield": "Mechanics",
        "difficulty": "easy",
        "is_calculation": False,
    } | changes  # fmt: skip


def load(tmp_path, rows, protocol="official", name="train.jsonl"):
    write_rows(tmp_path / "supergpqa" / name, rows)
    return get_task("supergpqa").load(protocol, str(tmp_path)).documents


def test_the_prompts(tmp_path):
    (official,) = load(tmp_path, [row()])
    asked = "What is heavy?\nA) air\nB) lead\nC) wool\nD) hope\nE) light"
    assert official.messages == [{"role": "user", "content": f"{INSTRUCTION}\n\n{asked}\n"}]
    assert (official.id, official.group, official.target) == ("u0", "Science", "B")
    (card,) = load(tmp_path, [row()], "card")
    options = "A. air\nB. lead\nC. wool\nD. hope\nE. light"
    assert card.messages == [{"role": "user", "content": f"What is heavy?\n\n{options}\n\n{CARD_REQUEST}"}]
    likelihood = official.likelihood
    assert likelihood.context == f"{INSTRUCTION}\n\n{asked}\nAnswer:"
    assert (likelihood.choices, likelihood.gold) == ((" A", " B", " C", " D", " E"), {1})


def test_a_base_model_sees_five_solved_examples(tmp_path):
    (document,) = load(tmp_path, [row()])
    parts = document.text.split("Question: \n")
    assert len(parts) == 7
    assert parts[0] == f"{INSTRUCTION}\n\n"
    assert (
        parts[6]
        == "What is heavy?\nA) air\nB) lead\nC) wool\nD) hope\nE) light\n\nAnswer: Let's think step by step. \n"
    )
    assert [part.strip()[-2:] for part in parts[1:6]] == ["H.", "E.", "A.", "E.", "A."]
    assert all("\nAnswer: Let's think step by step. " in part for part in parts[1:6])
    assert "{{" not in supergpqa.SHOTS


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("Answer: B", "B"), ("It sinks.\nAnswer: $\\boxed{B}$.", "B"), ("The correct answer is (B).", "B"),
        ("Answer: A", "A"), ("Answer: b", "b"), ("The answer is lead.", "B"), ("I do not know", "I"), ("No idea", None),
        ("", None),
        ("It sinks.\nAnswer: B.\n\nQuestion: \nWhat is light?\nA) air\n\nAnswer: A.", "B"),
        ("Hm.\n\nQuestion: What is heavy?\nAnswer: B", "B"), ("Question: What is heavy?\nAnswer: B", "B"),
    ],
)  # fmt: skip
def test_what_the_authors_read(tmp_path, response, letter):
    (document,) = load(tmp_path, [row()])
    verdict = document.score(response)
    assert (verdict.prediction, verdict.parsed) == (letter, letter is not None)
    assert verdict.metrics == {"accuracy": [letter == "B"]}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ('"answer": "B"', "B"), ("Answer: B", "B"), ("Answer: F", None), ("Answer: A. Wait, no: B", "B"),
        ("答案：B", "B"),
        ("**B**", "B"), ("(B)", "B"), ("Option B", "B"), (r"\boxed{B}", "B"), ("I am sure.", None), ("", None),
    ],
)  # fmt: skip
def test_what_the_card_reads(tmp_path, response, letter):
    (document,) = load(tmp_path, [row()], "card")
    assert document.score(response).prediction == letter


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_letter": "F"}, r"\.jsonl:1: answer_letter='F' is the letter of none of the 5 options"),
        ({"answer_letter": ""}, "answer_letter='' is the letter of none"),
        ({"answer_letter": "AB"}, "answer_letter='AB' is the letter of none"),
        ({"options": ["one"]}, r"options=\['one'\] must be 2 to 10 texts"),
        ({"options": list("abcdefghijk")}, "must be 2 to 10 texts"),
        ({"options": ["a", 1]}, "must be 2 to 10 texts"),
        ({"options": "a, b"}, "options='a, b' is a str, expected list"),
        ({"uuid": None}, "uuid=None is a NoneType"),
        ({"discipline": 3}, "discipline=3 is an int"),
    ],
)
def test_wrong_rows(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, [row(**changes)])


def test_the_hubs_file_and_its_revision(tmp_path):
    rows = [row(), row(uuid="u1", options=list("abcdefghij"), answer_letter="J")]
    assert len(load(tmp_path, rows, name="SuperGPQA-all.jsonl")) == 2
    with pytest.raises(ValueError, match="task supergpqa has no protocol lm-eval; give --protocol card or official"):
        get_task("supergpqa").load("lm-eval", str(tmp_path))
    for name in ("ceval", "mmlu_redux", "supergpqa"):
        assert len(get_task(name).data.hub.revision) == 40
