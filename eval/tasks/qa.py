"""Exact-match question answering over rows ``{"question", "answer"}``, with an optional ``id``.

The question is the prompt, as it stands, under every protocol; a response is right if its final
answer equals the row's after normalisation (``eval.scorers.exact_match``).
"""

from collections.abc import Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.exact_match import final_text, normalize
from eval.tasks.base import Document, Task, Verdict, user_turn
from eval.tasks.data import Data, Row


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    question, answer = row.get("question", str), row.get("answer", str)
    target = normalize(answer)
    if not target:
        raise ValueError(f"{row.where}: answer={answer!r} is empty; no response could be right.")

    def score(response: str) -> Verdict:
        found = final_text(response)
        prediction = normalize(found) if found else None
        correct = prediction == target
        return Verdict(correct, {"accuracy": [correct]}, prediction or None, parsed=bool(prediction))

    return Document(row.own_id(), user_turn(question), score, text=question, target=answer)


_OWN = "the question as the user wrote it"

TASK = Task(
    name="qa",
    data=Data(splits=("test",)),
    protocols={
        "card": Protocol(_OWN),
        "official": Protocol(_OWN, {"thinking": 32_768, "non_thinking": 4_096}, sampling="greedy", cut_is_wrong=False),
        "lm-eval": Protocol(_OWN, {"thinking": 256, "non_thinking": 256}, sampling="greedy", cut_is_wrong=False),
    },
    document=_document,
)
