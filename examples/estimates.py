"""A benchmark of one's own: estimates, right within a tenth of the true value.

python -m eval.run configs/eval_2b.py --tasks examples/estimates.py --data-dir DATA
"""

from collections.abc import Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.exact_match import final_number
from eval.tasks.base import Document, Task, Verdict, user_turn
from eval.tasks.data import Data, Row

REQUEST = "Estimate if you do not know, and end with a line 'Answer: NUMBER'."


def document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    """Makes a document of a row ``{"question", "value", "topic"}``."""
    question, value, topic = row.get("question", str), float(row.get("value", int, float)), row.get("topic", str)
    if value == 0:
        raise ValueError(f"{row.where}: value=0 has no tenth; leave the row out.")

    def score(response: str) -> Verdict:
        found = final_number(response)
        if found is None or "/" in found:
            return Verdict(False, {"accuracy": [0]}, parsed=False)
        near = abs(float(found) - value) <= abs(value) / 10
        return Verdict(near, {"accuracy": [near]}, prediction=found)

    return Document(row.own_id(), user_turn(f"{question} {REQUEST}"), score, group=topic, target=str(value))


TASK = Task(
    name="estimates",
    data=Data(splits=("test",)),
    protocols={"official": Protocol("my own", sampling="greedy"), "card": Protocol("my own")},
    document=document,
)
