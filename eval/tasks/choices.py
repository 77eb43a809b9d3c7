"""What multiple-choice tasks share: solved examples, lettered options, the card's request, the verdict on a letter."""

from collections.abc import Iterable, Sequence

from eval.scorers.choice import LETTERS
from eval.tasks.base import Likelihood, Verdict
from eval.tasks.data import Row

# Source: the model card of Qwen3.5-2B, "Best Practices".
CARD_REQUEST = 'Please show your choice in the `answer` field with only the choice letter, e.g., "answer": "C".'


def solved_examples(row: Row, examples: Sequence[Row], field: str, count: int, *, split: str) -> list[Row]:
    """Returns the first ``count`` solved examples of a row's subject; none where the task was read without examples.

    Args:
      field: holds the subject.
      split: of the examples, for the message.

    Raises:
      ValueError: the subject has fewer.
    """
    subject = row.get(field, str)
    own = [example for example in examples if example.get(field, str) == subject][:count]
    if examples and len(own) < count:
        raise ValueError(
            f"{row.where}: {field}={subject!r} has {len(own)} solved examples in the {split} split, but the prompt has "
            f"{count}; give the whole split."
        )
    return own


def lettered(options: Sequence[str], mark: str = ".") -> str:
    """Returns the options as lines ``A. ...``."""
    return "\n".join(f"{letter}{mark} {option}" for letter, option in zip(LETTERS, options, strict=False))


def card_prompt(question: str, options: Sequence[str]) -> str:
    """Returns a question with its options and what the model card asks for."""
    return f"{question}\n\n{lettered(options)}\n\n{CARD_REQUEST}"


def letter_likelihood(context: str, count: int, gold: Iterable[int]) -> Likelihood:
    """Returns the comparison of the bare letters after a context that ends without a space."""
    labels = tuple(LETTERS[:count])
    return Likelihood(context, tuple(f" {label}" for label in labels), labels, frozenset(gold))


def letter_verdict(letter: str | None, target: str, **more: Sequence[float]) -> Verdict:
    """Returns the verdict on a letter.

    Args:
      letter: what the response states; None where it states none.
      target: the right letter.
      more: the values of further metrics.
    """
    correct = letter == target
    metrics: dict[str, list[float]] = {"accuracy": [correct]} | {name: list(values) for name, values in more.items()}
    return Verdict(correct, metrics, letter, parsed=letter is not None)
