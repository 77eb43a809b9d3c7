"""OCRBench (v1): 1,000 questions about text in pictures, of ten kinds (arXiv:2305.07895).

A response is right if it holds one of the answers: in small letters, line breaks as spaces; of handwritten formulas
(HME100k) without spaces and with case. ``accuracy`` times 1,000 is the score that the authors tell. The five parts of
their table are metrics too: ``text_recognition`` (six of the kinds, 300 questions), ``scene_text_vqa``,
``document_vqa``, ``key_information`` (200 each) and ``formulas`` (100). Both protocols ask the question as it stands
and score so; they differ in how responses are drawn.

Data, in ``DATA_DIR/ocrbench``: echo840/OCRBench of the hub (``test.parquet``), VLMEvalKit's ``OCRBench.tsv``, or the
authors' ``OCRBench.json`` with the folder ``OCRBench_Images`` beside it. A file of answers in the authors' layout,
which has ``predict`` in such rows, holds the questions too.
"""

from collections.abc import Sequence
from typing import Any

from eval.protocols import Protocol, ProtocolName
from eval.tasks.base import Document, Task, Verdict
from eval.tasks.data import Data, Row, listed
from eval.tasks.media import image_parts, images_of, user_parts
from eval.tasks.vision import group_of, text_of

_IMAGES = ("image", "image_path")
# How the data set of handwritten formulas, and its kind of question, are called in the three files.
_FORMULAS = ("HME100k", "Handwritten Mathematical Expression Recognition")
# The part of the authors' table that a kind of question belongs to.
_PARTS = {
    **dict.fromkeys(
        (
            "Regular Text Recognition", "Irregular Text Recognition", "Artistic Text Recognition",
            "Handwriting Recognition", "Digit String Recognition", "Non-Semantic Text Recognition",
        ),
        "text_recognition",
    ),
    "Scene Text-centric VQA": "scene_text_vqa",
    "Doc-oriented VQA": "document_vqa",
    "Key Information Extraction": "key_information",
    "Handwritten Mathematical Expression Recognition": "formulas",
}  # fmt: skip


def holds_answer(response: str, answers: Sequence[str], *, is_formula: bool) -> bool:
    """Whether a response holds one of the answers.

    Source: OCRBench/example.py of github.com/Yuliang-Liu/MultimodalOCR.
    """

    def form(text: str) -> str:
        if not is_formula:
            return text.lower().strip().replace("\n", " ")
        return text.strip().replace("\n", " ").replace(" ", "")

    return any(form(answer) in form(response) for answer in answers)


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    answers = _answers(row)
    is_formula = any(row.fields.get(name) in _FORMULAS for name in ("dataset", "dataset_name", "category"))

    kind = group_of(row, "question_type", "type", "category")
    names = ["accuracy", *([_PARTS[kind]] if kind in _PARTS else [])]

    def score(response: str) -> Verdict:
        correct = holds_answer(response, answers, is_formula=is_formula)
        return Verdict(correct, {name: [correct] for name in names})

    ids = [name for name in ("index", "id") if name in row.fields]
    pictures = image_parts(images_of(row.fields, _IMAGES), PROTOCOLS[protocol].media)
    return Document(
        row.get(ids[0], int, str) if ids else row.number,
        user_parts(*pictures, text_of(row, "question")),
        score,
        group=kind,
        target=" or ".join(answers),
    )


def _answers(row: Row) -> list[str]:
    name = "answers" if "answers" in row.fields else "answer"
    value: Any = listed(row.get(name, str, list, int, float))
    answers = [str(each) for each in value] if isinstance(value, list) else [str(value)]
    if not answers:
        raise ValueError(f"{row.where}: {name}=[] has no answer; no response could be right.")
    return answers


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "card": Protocol("the authors' question; model card of Qwen3.5-2B for the sampling", modality="image"),
    "official": Protocol(
        "https://github.com/Yuliang-Liu/MultimodalOCR OCRBench/example.py",
        {"thinking": 32_768, "non_thinking": 4_096}, sampling="greedy", cut_is_wrong=False, modality="image",
    ),
}  # fmt: skip

TASK = Task(
    name="ocrbench",
    data=Data(
        splits=("test",), files=("OCRBench.tsv", "OCRBench.json"), images=_IMAGES,
    ),
    protocols=PROTOCOLS,
    document=_document,
    question_fields=("dataset_name", "answers", "predict"),
)  # fmt: skip
