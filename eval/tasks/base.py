"""What a task is: documents with the messages to answer, and a verdict on each response."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from eval.config import Protocol
from eval.tasks.data import HubFile, Row, find_file, read_rows

Outcome = Literal["correct", "wrong", "no_answer", "truncated"]
OUTCOMES: tuple[Outcome, ...] = ("correct", "wrong", "no_answer", "truncated")

Message = Mapping[str, Any]
"""A chat message, ``{"role", "content", ...}``."""


def user_turn(text: str) -> list[Message]:
    """Returns the conversation that consists of one question."""
    return [{"role": "user", "content": text}]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement of one response.

    Attributes:
      answered: whether there is something to judge.
      correct: whether it counts as right.
      metrics: for each metric the values of this response: one number, or one for each trial (such as an
        instruction). Yes and no are 1 and 0.
      prediction: the extracted answer; None where none was found, or where the task extracts none.

    Raises:
      ValueError: a metric has no value, or one that is not a finite number.
    """

    answered: bool
    correct: bool
    metrics: dict[str, list[float]]
    prediction: str | None = None

    def __post_init__(self):
        for name, values in self.metrics.items():
            if not values or not all(map(math.isfinite, values)):
                raise ValueError(f"metric {name!r} has the values {values}; give one finite number or more.")

    def outcome(self, finish_reason: str | None) -> Outcome:
        """Returns the one class this sample falls into; a right answer is right even if it was cut off.

        An answer is cut off by its limit of tokens, or because it had come to repeat itself.
        """
        if self.correct:
            return "correct"
        if finish_reason in ("length", "loop"):
            return "truncated"
        return "wrong" if self.answered else "no_answer"


@dataclasses.dataclass(frozen=True)
class Document:
    """One item of a benchmark, made from a checked row of its data.

    Attributes:
      id: what samples and stored responses refer to it by.
      messages: the conversation whose next turn the model writes.
      score: judges the text after the think block.
    """

    id: int | str
    messages: Sequence[Message]
    score: Callable[[str], Verdict]


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
      name: on the command line, and of the folder with its data.
      splits: file stems to look for, in this order.
      hub: where the data comes from without a data directory.
      lm_eval_max_new_tokens: response length of lm-evaluation-harness.
      document: turns a row into a document under a protocol; raises ValueError with the row's place.
      prepare: called with the data directory before any row is read.
    """

    name: str
    splits: tuple[str, ...]
    hub: HubFile | None
    lm_eval_max_new_tokens: int
    document: Callable[[Row, Protocol], Document]
    prepare: Callable[[str | None], None] = lambda data_dir: None

    def load(self, protocol: Protocol, data_dir: str | None, limit: int | None = None) -> tuple[Path, list[Document]]:
        """Returns the data file and its documents, all checked, in the file's order.

        Raises:
          ValueError: the data or something that scoring needs is missing, or a row is wrong.
        """
        self.prepare(data_dir)
        path = find_file(self.name, self.splits, self.hub, data_dir)
        documents: list[Document] = []
        places: dict[str, str] = {}
        for row in read_rows(path)[:limit]:
            document = self.document(row, protocol)
            if str(document.id) in places:
                raise ValueError(f"{row.where}: id {document.id!r} stands at {places[str(document.id)]} already.")
            places[str(document.id)] = row.where
            documents.append(document)
        return path, documents
