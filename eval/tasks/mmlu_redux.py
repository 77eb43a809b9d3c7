"""MMLU-Redux 2.0: 5,700 questions of MMLU, 100 of each subject, with the errors that readers found (arXiv:2406.04127).

| protocol | prompt | the letter is |
|---|---|---|
| card | question, options, and the model card's request | the last one that the response states (eval.scorers.choice) |
| official | HELM's, whose scores the authors published, without its five solved examples | the first line, bare |
| lm-eval | that of mmlu_redux_generative: the letter alone | the first capital A, B, C or D |

lm-evaluation-harness takes the first capital of the response, so that "Answer: B" answers A and "Because ..." B, and
leaves no room to reason; it is here to be compared with, not for thinking models. It also asks the ``ok`` rows only:
compare it with ``accuracy_ok``.

Which labels the model card uses is not known. Three scores come from one run:

- ``accuracy``: MMLU's own labels, all rows. HELM's published scores are these.
- ``accuracy_ok``: the same, rows of error type ``ok`` only.
- ``accuracy_corrected``: the label that a reader corrected:
  - ``wrong_groundtruth``: each choice that ``correct_answer`` names, by number from 0, letter or text; a row that names
    none is left out.
  - ``multiple_correct_answers``: each choice that it names, and every choice of the same text; a row that names none
    ("depends on interpretation") is left out.
  - ``no_correct_answer``: protocol card shows the text of ``correct_answer`` in place of the labelled choice, whose
    letter is then right. Rows without such a text are left out; under the other protocols, which ask the questions as
    they are, all of these rows are.
  - ``ok``, and ``bad_question_clarity``, ``bad_options_clarity`` and ``expert``, which correct no label: MMLU's label.

Data: edinburgh-dawg/mmlu-redux-2.0 on the hub, CC-BY-4.0.
"""

import ast
import re
from collections.abc import Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.choice import LETTERS, final_letter
from eval.tasks.base import Document, Task, Verdict, user_turn
from eval.tasks.choices import card_prompt, letter_likelihood, letter_verdict, lettered
from eval.tasks.data import Data, HubFiles, Row

ERROR_TYPES = (
    "ok", "wrong_groundtruth", "multiple_correct_answers", "no_correct_answer", "bad_question_clarity",
    "bad_options_clarity", "expert",
)  # fmt: skip
# Of these, `correct_answer` says which labels are right.
_CORRECTED = ("wrong_groundtruth", "multiple_correct_answers")

SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics",
    "computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics",
    "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_european_history", "high_school_geography", "high_school_government_and_politics",
    "high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history",
    "human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning",
    "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition",
    "philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine",
    "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology",
    "world_religions",
)  # fmt: skip

_NUM_CHOICES = 4
_LM_EVAL_REQUEST = (
    "Please respond with the correct letter (A, B, C or D) without any additional comments, only the correct letter:"
)
_FIRST_CAPITAL = re.compile("[ABCD]")


def named_choices(correct: str, choices: Sequence[str]) -> frozenset[int]:
    """Returns the places of the choices that an annotator named: ``1``, ``B``, ``1, 3``, ``(0, 1)``, ``0 or 2``.

    The text of a choice names it too. What says anything else names none.
    """
    words = [word for word in re.findall(r"\w+", correct) if word not in ("and", "or")]
    letters = LETTERS[:_NUM_CHOICES]
    places = [letters.find(word) if word.isalpha() else "0123".find(word) for word in words if len(word) == 1]
    if words and len(places) == len(words) and min(places) >= 0:
        return frozenset(places)
    text = correct.strip().casefold()
    return frozenset(place for place, choice in enumerate(choices) if choice.strip().casefold() == text)


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    subject, question, choices = row.get("subject", str), row.get("question", str), _choices(row)
    label = row.get("answer", int)
    if not 0 <= label < _NUM_CHOICES:
        raise ValueError(f"{row.where}: answer={label} is the number of no choice; give 0 to 3.")
    error = _error_type(row)
    correct = _correct_answer(row, is_needed=error in _CORRECTED)
    accepted = frozenset({label})
    if error == "no_correct_answer":
        if protocol == "card" and correct:
            choices[label] = correct
        else:
            accepted = frozenset()
    elif error in _CORRECTED:
        accepted = named_choices(correct, choices)
        if error == "multiple_correct_answers":
            texts = {choices[place] for place in accepted}
            accepted = frozenset(place for place, choice in enumerate(choices) if choice in texts)

    def score(response: str) -> Verdict:
        letter = _letter(response, protocol)
        correct_label = letter == LETTERS[label]
        more: dict[str, list[float]] = {"accuracy_ok": [correct_label]} if error == "ok" else {}
        if accepted:
            more["accuracy_corrected"] = [letter is not None and LETTERS.index(letter) in accepted]
        return letter_verdict(letter, LETTERS[label], **more)

    text = _lm_eval_prompt(subject, question, choices) if protocol == "lm-eval" else _prompt(subject, question, choices)
    asked = card_prompt(question, choices) if protocol == "card" else text
    likelihood = letter_likelihood(_prompt(subject, question, choices), _NUM_CHOICES, {label})
    return Document(
        row.own_id(), user_turn(asked), score, group=subject, text=text, likelihood=likelihood, target=LETTERS[label]
    )


def _choices(row: Row) -> list[str]:
    """Returns the choices; some files hold the list as its Python text."""
    choices = row.get("choices", list, str)
    if isinstance(choices, str):
        try:
            choices = ast.literal_eval(choices)
        except (SyntaxError, ValueError) as err:
            raise ValueError(f"{row.where}: choices={choices[:80]!r} is no list of texts.") from err
    texts = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if not texts or len(choices) != _NUM_CHOICES:
        raise ValueError(f"{row.where}: choices={choices!r} must be {_NUM_CHOICES} texts.")
    return list(choices)


def _error_type(row: Row) -> str:
    """Returns the error type as the hub spells it; the files of the annotators write it in many ways."""
    written = row.get("error_type", str)
    error = re.sub(r"[\s-]+", "_", written.strip()).casefold()
    if error not in ERROR_TYPES:
        raise ValueError(f"{row.where}: error_type={written!r} is unknown; give one of {', '.join(ERROR_TYPES)}.")
    return error


def _correct_answer(row: Row, *, is_needed: bool) -> str:
    is_there = is_needed or "correct_answer" in row.fields
    correct = row.get("correct_answer", str, int, type(None)) if is_there else None
    return "" if correct is None else str(correct).strip()


def _letter(response: str, protocol: ProtocolName) -> str | None:
    if protocol == "card":
        return final_letter(response, _NUM_CHOICES)
    if protocol == "lm-eval":
        found = _FIRST_CAPITAL.search(response)
        return found[0] if found else None
    line = response.strip().partition("\n")[0].strip()
    return line if len(line) == 1 and line in LETTERS[:_NUM_CHOICES] else None


def _prompt(subject: str, question: str, choices: Sequence[str]) -> str:
    return f"{_description(subject)}Question: {question}\n{lettered(choices)}\nAnswer:"


def _lm_eval_prompt(subject: str, question: str, choices: Sequence[str]) -> str:
    return f"{_description(subject)}{question.strip()}\n{lettered(choices)}\n{_LM_EVAL_REQUEST}"


def _description(subject: str) -> str:
    name = subject.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {name}.\n\n"


TASK = Task(
    name="mmlu_redux",
    data=Data(
        splits=("test",),
        hub=HubFiles(
            "edinburgh-dawg/mmlu-redux-2.0", "372ea425445d51e1ba1188c56e5e893f8138621f",
            "{part}/data-00000-of-00001.arrow",
        ),
        parts=SUBJECTS,
    ),
    protocols={
        "card": Protocol("model card of Qwen3.5-2B, Best Practices", max_text_tokens=5),
        "official": Protocol(
            "HELM's mmlu (helm/benchmark/run_specs/lite_run_specs.py); https://arxiv.org/abs/2406.04127",
            {"thinking": 32_768, "non_thinking": 5}, sampling="greedy", cut_is_wrong=False, max_text_tokens=5,
        ),
        "lm-eval": Protocol(
            "lm_eval 0.4 mmlu_redux_generative", {"thinking": 256, "non_thinking": 256}, sampling="greedy",
            stop=("</s>",), cut_is_wrong=False, max_text_tokens=256,
        ),
    },
    document=_document,
)  # fmt: skip
