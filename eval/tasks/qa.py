"""Exact-match question answering over rows ``{"question", "answer"}``, with an optional ``id``.

The question is the prompt, as it stands, under every protocol; a response is right if its final
answer equals the row's after normalisation (``eval.scorers.exact_match``).
"""

from eval.config import Protocol
from eval.scorers.exact_match import final_text, normalize
from eval.tasks.base import Document, Task, Verdict, user_turn
from eval.tasks.data import Row


def _document(row: Row, protocol: Protocol) -> Document:
    question, answer = row.get("question", str), row.get("answer", str)
    target = normalize(answer)
    if not target:
        raise ValueError(f"{row.where}: answer={answer!r} is empty; no response could be right.")

    def score(response: str) -> Verdict:
        found = final_text(response)
        prediction = normalize(found) if found else None
        correct = prediction == target
        return Verdict(bool(prediction), correct, {"accuracy": [correct]}, prediction or None)

    return Document(row.own_id(), user_turn(question), score)


TASK = Task(name="qa", splits=("test",), hub=None, lm_eval_max_new_tokens=256, document=_document)
