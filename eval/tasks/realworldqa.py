"""RealWorldQA: 765 questions about photographs, most of them from vehicles (xAI; CC-BY-ND-4.0).

| protocol | prompt | answer |
|---|---|---|
| card | as Qwen's published code for its vision models asks | VLMEvalKit's rule, else the last letter stated |
| official | xAI's question as it stands, which says how to answer | equal letter, word or number, normalised |

Rows are VLMEvalKit's (``RealWorldQA.tsv``, with options in columns A, B, ...), or xAI's (xai-org/RealworldQA on the
hub, ``test.parquet``), whose options stand in the text of the question; some of its questions have none and ask for a
word or a number. Under ``official`` a row of the first kind is written as xAI writes its own.

Data: download either file into ``DATA_DIR/realworldqa``.
"""

import re
from collections.abc import Mapping, Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.choice import final_letter
from eval.scorers.exact_match import final_number, final_text, normalize
from eval.scorers.numbers import number
from eval.tasks.base import Document, Task, Verdict
from eval.tasks.choices import letter_verdict, lettered
from eval.tasks.data import Data, Row
from eval.tasks.media import image_parts, images_of, user_parts
from eval.tasks.vision import QWEN, choice_judging, chosen, options_of, qwen_prompt, text_of

_IMAGES = ("image",)
_OPTION = re.compile(r"^\s*\(?([A-H])[.)]\s+(.*?)\s*$", re.MULTILINE)
_DIRECT = "Please answer directly with only the letter of the correct option and nothing else."


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    question, target = text_of(row, "question"), row.get("answer", str).strip()
    columns = options_of(row)
    # Options in the text belong to the question only if the answer is one of their letters.
    written = columns or {letter: option for letter, option in _OPTION.findall(question) if option}
    options: Mapping[str, str] = written if target in written else {}
    if not target or (columns and target not in columns):
        raise ValueError(f"{row.where}: answer={target!r}; it is a letter of the options {[*columns]}, or a text.")

    def score(response: str) -> Verdict:
        if options:
            letter = chosen(response, options) if protocol == "card" else final_letter(response, len(options))
            return letter_verdict(letter, target)
        return _text_verdict(response, target)

    pictures = image_parts(images_of(row.fields, _IMAGES), PROTOCOLS[protocol].media)
    asked = f"{question}\n\n{lettered([*columns.values()])}\n{_DIRECT}" if columns else question
    prompt = qwen_prompt(question, columns) if protocol == "card" and columns else asked
    names = [name for name in ("index", "question_id", "id") if name in row.fields]
    return Document(
        row.get(names[0], int, str) if names else row.number,
        user_parts(*pictures, prompt),
        score,
        target=target,
        judging=choice_judging(question, options, target) if options else None,
    )


def _text_verdict(response: str, target: str) -> Verdict:
    """Judges the answer to a question without options."""
    wanted = normalize(target)
    found = final_text(response) if number(wanted) is None else final_number(response)
    prediction = normalize(found) if found else None
    correct = prediction == wanted
    return Verdict(correct, {"accuracy": [correct]}, prediction, parsed=prediction is not None)


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "card": Protocol(
        f"{QWEN}/RealWorldQA (VLMEvalKit's prompt and rule)", modality="image",
        media={"min_pixels": 768 * 28 * 28, "max_pixels": 5120 * 28 * 28},
    ),
    "official": Protocol(
        "https://huggingface.co/datasets/xai-org/RealworldQA", {"thinking": 32_768, "non_thinking": 4_096},
        sampling="greedy", cut_is_wrong=False, modality="image",
    ),
}  # fmt: skip

TASK = Task(
    name="realworldqa",
    data=Data(splits=("test",), files=("RealWorldQA.tsv",), images=_IMAGES),
    protocols=PROTOCOLS,
    document=_document,
)
