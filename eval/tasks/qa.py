"""Question answering over the user's rows ``{"question", "answer"}``, with an optional ``id``.

The question is the prompt, as it stands, under every protocol. Where the row's answer is a number, the final number of
a response counts (``The answer is 18 apples.`` gives 18); else its final text must equal the row's after normalisation.
``eval.scorers.exact_match`` describes both.
"""

from collections.abc import Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.exact_match import final_number, final_text, normalize
from eval.scorers.numbers import number
from eval.tasks.base import Document, Task, Verdict, user_turn
from eval.tasks.data import Data, Row


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    question, answer = row.get("question", str), row.get("answer", str)
    target = normalize(answer)
    if not target:
        raise ValueError(f"{row.where}: answer={answer!r} is empty; no response could be right.")

    final = _final_text if number(target) is None else final_number

    def score(response: str) -> Verdict:
        prediction = final(response)
        correct = prediction == target
        return Verdict(correct, {"accuracy": [correct]}, prediction, parsed=prediction is not None)

    return Document(row.own_id(), user_turn(question), score, text=question, target=answer)


def _final_text(response: str) -> str | None:
    found = final_text(response)
    return (normalize(found) or None) if found else None


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
