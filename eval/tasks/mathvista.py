r"""MathVista: 1,000 questions of mathematics about a picture, the split testmini (arXiv:2310.02255; CC-BY-SA-4.0).

| protocol | prompt | answer |
|---|---|---|
| card | question and choices, and the model card's request for ``\boxed{}`` | see below |
| official | the authors' hint, question and choices | see below |

The authors extract the answer with a language model where no rule of theirs does, then bring it into the form of the
answers and compare (``eval.scorers.mathvista``): a text that is no choice becomes the nearest one. Here rules alone
extract: theirs first, then the choice, number or list that the response states last; under ``official`` one short line
without any is taken for an extraction. A judge, if there is one, is asked where these find nothing. A file of answers
in the authors' layout has extractions of its own, which count in place of the rules; its rows are the questions too.

Data: AI4Math/MathVista on the hub, or the authors' ``testmini.json`` with the folder ``images`` beside it.
"""

import re
from collections.abc import Sequence
from typing import Any

from eval.protocols import Protocol, ProtocolName
from eval.scorers.choice import LETTERS, final_letter
from eval.scorers.exact_match import final_number, final_text, normalize
from eval.scorers.mathvista import normalized, quick_extraction
from eval.tasks.base import Document, Judging, Task, Verdict
from eval.tasks.data import Data, HubFiles, Row
from eval.tasks.gsm8k import CARD_REQUEST
from eval.tasks.media import image_parts, images_of, user_parts
from eval.tasks.vision import text_of

_IMAGES = ("decoded_image", "image")
_HINTS = {
    "text": "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at "
    "the end.",
    "float 1": "Please answer the question requiring a floating-point number with one decimal place and provide the "
    "final value, e.g., 1.2, 1.3, 1.4, at the end.",
    "float 2": "Please answer the question requiring a floating-point number with two decimal places and provide the "
    "final value, e.g., 1.23, 1.34, 1.45, at the end.",
    "list": "Please answer the question requiring a Python list as an answer and provide the final list, e.g., [1, 2, "
    "3], [1.2, 1.3, 1.4], at the end.",
}
_JUDGE = (
    "Read the final answer out of a response to a question. Reply with that answer and nothing else: {form}. Reply "
    "with NONE if the response gives no answer.\n\nQuestion: {question}\n\nResponse to read:\n{response}"
)
_FORMS = {
    "text": "the letter of the chosen option in brackets, such as (A)",
    "integer": "a whole number",
    "float": "a number with its decimals",
    "list": "a Python list",
}
_LONGEST_EXTRACTION = 100
_LIST = re.compile(r"\[[^\[\]]*\]")


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    choices, kind, answer = _choices(row), row.one_of("answer_type", *_FORMS), row.get("answer", str)
    precision = row.get("precision", int, float) if kind == "float" else None
    question = _question(row, choices)
    media = PROTOCOLS[protocol].media
    asked = f"{question}\n{CARD_REQUEST}" if protocol == "card" else f"Hint: {_hint(kind, precision)}\n{question}"

    def verdict(extraction: Any) -> Verdict:
        prediction = normalized(extraction, choices, kind, precision)
        correct = prediction == answer
        return Verdict(correct, {"accuracy": [correct]}, prediction, parsed=prediction is not None)

    def score(response: str) -> Verdict:
        extraction = extract(response, choices, kind)
        if extraction is None and choices and protocol == "official" and _is_short(response):
            extraction = response
        return Verdict(False, {"accuracy": [0]}, None, parsed=False) if extraction is None else verdict(extraction)

    def read(reply: Any) -> Verdict:
        said_nothing = isinstance(reply, str) and reply.strip().strip(".").upper() == "NONE"
        return Verdict(False, {"accuracy": [0]}, None, parsed=False) if said_nothing else verdict(reply)

    judging = Judging(lambda response: _JUDGE.format(form=_FORMS[kind], question=question, response=response), read)
    return Document(
        row.get("pid" if "pid" in row.fields else "id", str, int),
        user_parts(*image_parts(images_of(row.fields, _IMAGES)[:1], media), asked),
        score,
        group=(row.fields.get("metadata") or {}).get("task"),
        target=answer,
        judging=judging,
    )


def _is_short(response: str) -> bool:
    """Whether a response is as short as what a language model extracts, and may be taken for an extraction."""
    return 0 < len(response.strip()) <= _LONGEST_EXTRACTION and "\n" not in response.strip()


def _choices(row: Row) -> list[str] | None:
    if row.one_of("question_type", "multi_choice", "free_form") == "free_form":
        return None
    choices = row.get("choices", list)
    if not 1 <= len(choices) <= len(LETTERS) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{row.where}: choices={choices!r}; give 1 to {len(LETTERS)} texts.")
    return choices


def _question(row: Row, choices: Sequence[str] | None) -> str:
    unit = row.fields.get("unit")
    text = f"Question: {text_of(row, 'question')}" + (f" (Unit: {unit})" if unit else "")
    listed = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices or (), strict=False)]
    return "\n".join([text, "Choices:", *listed] if listed else [text]).strip()


def _hint(kind: str, precision: float | None) -> str:
    """Returns the authors' hint of the form of the answer. Source: evaluation/build_query.py of their repository."""
    name = kind if precision is None else f"float {int(precision)}"
    return _HINTS.get(name, _HINTS["float 2"])


def extract(response: str, choices: Sequence[str] | None, kind: str) -> str | None:
    """Returns the answer that rules find in a response; None where they find none."""
    response = response.strip()
    if not response:
        return None
    quick = quick_extraction(response, choices, kind)
    if quick is not None:
        return quick
    if choices:
        letter = final_letter(response, len(choices))
        if letter is not None:
            return letter
        stated = normalize(final_text(response) or "")
        return next((choice for choice in choices if normalize(choice) == stated), None)
    if kind in ("integer", "float"):
        return final_number(response)
    lists = _LIST.findall(response)
    return lists[-1] if lists else None


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "card": Protocol("model card of Qwen3.5-2B, Best Practices", modality="image"),
    "official": Protocol(
        "https://github.com/lupantech/MathVista evaluation", {"thinking": 32_768, "non_thinking": 4_096},
        sampling="greedy", cut_is_wrong=False, modality="image",
    ),
}  # fmt: skip

TASK = Task(
    name="mathvista",
    data=Data(
        splits=("testmini",),
        hub=HubFiles(
            "AI4Math/MathVista", "2b6ad69445fbb5695c9b165475e8decdbeb97747",
            "data/testmini-00000-of-00001-725687bf7a18d64b.parquet",
        ),
        images=_IMAGES,
    ),
    protocols=PROTOCOLS,
    document=_document,
    id_field="pid",
    question_fields=("question_type", "answer_type", "answer", "precision", "choices"),
)  # fmt: skip
