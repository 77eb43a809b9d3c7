"""What a task is: documents to ask, and a verdict on each response."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from eval.protocols import Protocol, ProtocolName
from eval.tasks.data import Data, Row, digest_of, listed, read_split
from eval.tasks.media import check_media

Outcome = Literal["ok", "unparsed", "truncated", "loop", "empty", "error"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "unparsed", "truncated", "loop", "empty", "error")
CUT: tuple[Outcome, ...] = ("truncated", "loop")
"""Outcomes of responses that did not end by themselves."""

Message = Mapping[str, Any]
"""A chat message, ``{"role", "content", ...}``."""


def user_turn(text: str) -> list[Message]:
    """Returns the conversation that consists of one question."""
    return [{"role": "user", "content": text}]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement of one response.

    Attributes:
      correct: whether it counts as right.
      metrics: for each metric the values of this response: one number, or one for each trial (such as an
        instruction). Yes and no are 1 and 0. A metric that leaves this document out is absent.
      prediction: the extracted answer; None where none was found, or where the task extracts none.
      parsed: whether an answer was found in the response.

    Raises:
      ValueError: a metric is no list, or has no value, or one that is not a finite number.
    """

    correct: bool
    metrics: dict[str, list[float]]
    prediction: str | None = None
    parsed: bool = True

    def __post_init__(self):
        for name, values in self.metrics.items():
            if not isinstance(values, list | tuple):
                raise ValueError(f"metric {name!r} is {values!r}; give a list of numbers, such as [1].")
            if not values or not all(map(math.isfinite, values)):
                raise ValueError(f"metric {name!r} has the values {values}; give one finite number or more.")


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Choices whose log-likelihood is compared.

    Attributes:
      context: the text before a choice.
      choices: the texts of which the model should find one most likely, each with the space before it.
      labels: what the choices are called.
      gold: places of the right ones.
    """

    context: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    gold: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Judging:
    """How a judge, another language model, may read a response that no rule can read.

    Attributes:
      ask: returns what the judge is asked about a response.
      score: judges what was read from the response: the judge's answer, or an extraction that is stored beside it.
    """

    ask: Callable[[str], str]
    score: Callable[[Any], Verdict]


@dataclasses.dataclass(frozen=True)
class Document:
    """One item of a benchmark, made from a checked row of its data.

    Attributes:
      id: what samples and stored responses refer to it by.
      messages: the conversation whose next turn the model writes. Images in it are ``eval.tasks.media.StoredImage``,
        videos are paths.
      score: judges the text after the think block. It is a pure function and takes any text.
      group: the subject or category it belongs to; documents of one group may depend on each other.
      text: the prompt for a base model, solved examples included; None where the task has none.
      likelihood: likewise, for choices.
      target: the right answer as a reader would write it.
      judging: how a judge may read a response; None where the task has no use for one.
      circle: the question whose options stand in another order here, and how many orders of it are asked. The metric
        ``circular`` counts it as right if it is right in all of them.
      where: its task, id and place in the data, for messages; set when a task is loaded.
    """

    id: int | str
    messages: Sequence[Message]
    score: Callable[[str], Verdict]
    group: str | None = None
    text: str | None = None
    likelihood: Likelihood | None = None
    target: str | None = None
    judging: Judging | None = None
    circle: tuple[str, int] | None = None
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The documents of a task and what identifies them.

    Attributes:
      source: the file or folder they come from.
      digest: SHA-256 of their rows and of the solved examples.
    """

    source: str
    digest: str
    documents: list[Document]


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
      name: on the command line, and of the folder with its data.
      data: where its rows are; the first split is the one that is scored by default.
      protocols: how it is asked and read, by the protocol's name.
      document: turns a row into a document; raises ValueError with the row's place. Its last argument are the rows of
        ``shots_split``, for protocols with solved examples; else none.
      shots_split: the split with solved examples.
      headline: the metric that is compared with published figures.
      macro: whether the mean over groups is told beside the mean over documents.
      headline_macro: whether that mean is what is compared with published figures.
      prepare: called with the data directory before any row is read.
      arrange: puts the rows in order, or splits those that hold several questions.
      id_field: the field that tells rows apart.
      question_fields: where a file of answers has all of these, its rows are the questions too.
    """

    name: str
    data: Data
    protocols: Mapping[ProtocolName, Protocol]
    document: Callable[[Row, ProtocolName, Sequence[Row]], Document]
    shots_split: str | None = None
    headline: str = "accuracy"
    macro: bool = False
    headline_macro: bool = False
    prepare: Callable[[str | None], None] = lambda data_dir: None
    arrange: Callable[[list[Row]], list[Row]] = lambda rows: rows
    id_field: str = "id"
    question_fields: tuple[str, ...] = ()

    def protocol(self, name: ProtocolName) -> Protocol:
        """Returns a protocol of the task.

        Raises:
          ValueError: it has none of that name.
        """
        if name not in self.protocols:
            raise ValueError(f"task {self.name} has no protocol {name}; give --protocol {' or '.join(self.protocols)}.")
        return self.protocols[name]

    def load(
        self, protocol: ProtocolName, data_dir: str | None, limit: int | None = None, split: str | None = None, *,
        asked: bool = True, given: tuple[str, list[Row]] | None = None,
        more: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Loaded:  # fmt: skip
        """Returns the documents, all checked, in the order of the data.

        Args:
          limit: how many; of a question that is asked with its options in several orders there are all.
          asked: whether a model will read the prompts; else they may lack images, and solved examples whose split is
            missing.
          given: rows to take in place of the task's data, and where they come from.
          more: fields by the id of a row that go before its own, but for images: what a file of answers says of its
            questions, such as the order of the choices.

        Raises:
          ValueError: the data or something that scoring needs is missing, or a row is wrong.
        """
        shots = self.protocol(protocol).shots
        if given is None:
            self.prepare(data_dir)
            wanted = split or self.data.splits[0]
            given = read_split(self.name, self.data, data_dir, wanted, or_any=split is None)
        source, rows = given[0], self.arrange(given[1])
        examples: list[Row] = []
        if shots and self.shots_split is not None:
            try:
                examples = read_split(self.name, self.data, data_dir, self.shots_split)[1]
            except ValueError as err:
                if asked:
                    raise ValueError(
                        f"the prompts of {self.name} show {shots} solved examples, which the split {self.shots_split} "
                        f"holds: {err}"
                    ) from err
        documents: list[Document] = []
        places: dict[str, str] = {}
        for row in rows:
            is_enough = limit is not None and len(documents) >= limit
            if is_enough and documents[-1].circle is None:
                break
            row = dataclasses.replace(self._joined(row, more or {}), asked=asked)
            document = self.document(row, protocol, examples)
            if is_enough and document.circle != documents[-1].circle:
                break
            if asked and self.protocol(protocol).modality != "text":
                check_media(document.messages, row.where)
            if str(document.id) in places:
                raise ValueError(f"{row.where}: id {document.id!r} stands at {places[str(document.id)]} already.")
            places[str(document.id)] = row.where
            where = f"{self.name}, document {document.id!r} ({row.where})"
            documents.append(dataclasses.replace(document, where=where))
        return Loaded(source, digest_of([*rows[: len(documents)], *examples]), documents)

    def _joined(self, row: Row, more: Mapping[str, Mapping[str, Any]]) -> Row:
        """Returns a row with what a file of answers says of it; raises ``ValueError`` if the right answers differ."""
        known = more.get(str(row.fields.get(self.id_field)), {})
        own, told = (listed(fields.get("answer")) for fields in (row.fields, known))
        if None not in (own, told) and own != told:
            raise ValueError(f"{row.where}: answer={own!r}, but the file of answers says {told!r}.")
        kept = {name: value for name, value in known.items() if name not in self.data.images}
        return dataclasses.replace(row, fields=row.fields | kept)
