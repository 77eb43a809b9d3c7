"""What tasks with pictures share: Qwen's prompt of a choice, the letter of a response, and what a judge is asked."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from eval.scorers.choice import LETTERS, final_letter
from eval.scorers.options import NONE_OF_THEM, inferred_option
from eval.tasks.base import Judging, Verdict
from eval.tasks.choices import letter_verdict
from eval.tasks.data import Row

QWEN = "https://github.com/QwenLM/Qwen3-VL evaluation"
"""The published code that is closest to the model card's tables of vision."""

_JUDGE_CHOICE = (
    "Someone answered a question by choosing one of its options. Which one does the answer choose? Reply with the "
    f"letter of that option and nothing else, or with {NONE_OF_THEM} if the answer chooses none of them.\n\n"
    "Question: {question}\n\nOptions:\n{options}\n\nAnswer to read:\n{response}"
)
_LETTER = re.compile(r"\b[A-Z]\b")


def qwen_prompt(question: str, options: Mapping[str, str], hint: str | None = None) -> str:
    """Returns a question as Qwen's vision evaluation writes it.

    Args:
      options: their texts by letter; none for an open question.
    """
    lines = [f"Hint: {hint}"] if hint else []
    lines.append(f"Question: {question}")
    if options:
        listed = [f"{letter}. {option}" for letter, option in options.items()]
        lines += ["Options:", *listed, "Please select the correct answer from the options above."]
    return "\n".join(lines).rstrip()


def options_of(row: Row) -> dict[str, str]:
    """Returns the options in the columns A, B, ... of a row, by letter; empty columns are none.

    Raises:
      ValueError: a column before the last option is missing or empty.
    """
    found = {letter: row.fields.get(letter) for letter in LETTERS}
    options = {letter: str(option) for letter, option in found.items() if option not in (None, "")}
    if [*options] != [*LETTERS[: len(options)]]:
        raise ValueError(
            f"{row.where}: options in the columns {[*options]}; they begin with A and leave no letter out."
        )
    return options


def chosen(response: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter that a response chooses: by VLMEvalKit's rule, else the last one that it states."""
    return inferred_option(response, options) or final_letter(response, len(options))


def choice_judging(question: str, options: Mapping[str, str], target: str, **more: Sequence[float]) -> Judging:
    """Returns how a judge reads the choice of a response.

    Args:
      more: the values of further metrics.
    """
    listed = "\n".join(f"{letter}. {option}" for letter, option in options.items())

    def score(reply: Any) -> Verdict:
        letters = [letter for letter in _LETTER.findall(str(reply)) if letter in (*options, NONE_OF_THEM)]
        letter = letters[-1] if letters else None
        return letter_verdict(letter, target, **more)

    return Judging(lambda response: _JUDGE_CHOICE.format(question=question, options=listed, response=response), score)


def text_of(row: Row, name: str) -> str:
    """Returns a field that a prompt needs; where a row that is not asked lacks it, as in files of answers, no text."""
    return row.get(name, str) if name in row.fields or row.asked else ""


def group_of(row: Row, *names: str) -> str | None:
    """Returns the first of these fields that says something."""
    found = (row.fields.get(name) for name in names)
    return next((str(value) for value in found if value not in (None, "")), None)
