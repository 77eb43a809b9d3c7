"""What multiple-choice tasks share: lettered options, the model card's request, and the verdict on a letter."""

from collections.abc import Iterable, Sequence

from eval.scorers.choice import LETTERS
from eval.tasks.base import Likelihood, Verdict

# Source: the model card of Qwen3.5-2B, "Best Practices".
CARD_REQUEST = 'Please show your choice in the `answer` field with only the choice letter, e.g., "answer": "C".'


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
