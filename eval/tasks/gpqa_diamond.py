r"""GPQA Diamond: 198 questions of biology, chemistry and physics that experts wrote (arXiv:2311.12022; CC-BY-4.0).

| protocol | prompt | answer |
|---|---|---|
| card | the question, and the model card's request for ``"answer": "C"`` | the last choice that is stated |
| official | the authors' zero-shot prompt | the authors' five patterns, ``answer is (X)`` before ``(X)`` |
| lm-eval | gpqa_diamond_cot_zeroshot | the last ``(X)``; ``strict``: what follows ``The answer is`` |

**Order of the choices.** Every row has the right answer and three wrong ones. They stand in the order of the SHA-256 of
the question, a line break and the choice, so that a question looks the same in every run, on every machine and in every
subset; the authors and lm_eval shuffle with a random generator, lm_eval without a seed. Where two choices are equal,
both letters are right.

The data set is gated: accept its conditions on the hub and log in (``hf auth login``), or put ``gpqa_diamond.csv`` into
``DATA_DIR/gpqa_diamond``. Its authors ask not to publish its questions as plain text. Rows have ``Question``,
``Correct Answer``, ``Incorrect Answer 1`` to ``3`` and ``High-level domain``; a document's id is its row number from 0.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.choice import final_letter
from eval.tasks.base import Document, Likelihood, Task, Verdict, user_turn
from eval.tasks.choices import LETTERS, card_prompt, letter_verdict
from eval.tasks.data import Data, HubFiles, Row

_RIGHT = "Correct Answer"
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_LABELS = tuple(f"({letter})" for letter in LETTERS[:4])
# Source: parse_sampled_answer in baselines/run_baseline.py of github.com/idavidrein/gpqa.
_AUTHORS = tuple(
    re.compile(pattern)
    for pattern in (r"answer is \((.)\)", r"Answer: \((.)\)", r"answer: \((.)\)", r"answer \((.)\)", r"\((.)\)")
)
_LM_EVAL = re.compile(r"\(([A-Z])\)")
_LM_EVAL_STRICT = re.compile(r"(?<=The answer is )(.*)(?=.)")
_LM_EVAL_BARE = re.compile(r":\s*([A-D])")


def ordered(question: str, choices: Sequence[str]) -> list[str]:
    """Returns choices in the order that follows from the question and their texts alone."""
    return sorted(
        choices, key=lambda choice: hashlib.sha256(f"{question}\n{choice}".encode("utf-8", "surrogatepass")).digest()
    )


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    question, right = row.get("Question", str), row.get(_RIGHT, str)
    choices = ordered(question, [right, *(row.get(name, str) for name in _WRONG)])
    if not right.strip():
        raise ValueError(f"{row.where}: {_RIGHT}={right!r} is empty; no response could be right.")
    gold = frozenset(place for place, choice in enumerate(choices) if choice == right)
    targets = [LETTERS[place] for place in sorted(gold)]
    if protocol == "lm-eval":
        choices = [_cleaned(choice) for choice in choices]
    listed = "\n".join(f"{label} {choice}" for label, choice in zip(_LABELS, choices, strict=True))
    prompt = {
        "card": card_prompt(question, choices),
        "official": f"What is the correct answer to this question: {question}\n\nChoices:\n{listed}\n\nFormat your "
        'response as follows: "The correct answer is (insert answer here)"',
        "lm-eval": f"What is the correct answer to this question:{question}\nChoices:\n{listed}\n"
        "Let's think step by step: ",
    }[protocol]

    def score(response: str) -> Verdict:
        if protocol == "card":
            letter = final_letter(response, len(choices))
        else:
            letter = _authors_letter(response) if protocol == "official" else _lm_eval_letter(response, choices)
        target = letter if letter in targets else targets[0]
        if protocol != "lm-eval":
            return letter_verdict(letter, target)
        strict = _LM_EVAL_STRICT.search(response)
        return letter_verdict(letter, target, strict=[strict is not None and _plain(strict[1]) in map(_plain, targets)])

    # Source: lm_eval's gpqa_diamond_zeroshot.
    context = f"What is the correct answer to this question:{question}\nChoices:\n{listed}\nAnswer:"
    likelihood = Likelihood(context, tuple(f" {label}" for label in _LABELS), tuple(LETTERS[:4]), gold)
    return Document(
        row.own_id(), user_turn(prompt), score, group=row.fields.get("High-level domain") or None, text=prompt,
        likelihood=likelihood, target=targets[0],
    )  # fmt: skip


def _cleaned(choice: str) -> str:
    """Returns a choice as lm_eval's ``preprocess`` does."""
    return choice.strip().replace(" [title]", ". ").replace("  ", " ")


def _authors_letter(response: str) -> str | None:
    for pattern in _AUTHORS:
        found = pattern.search(response)
        if found and found[1] in LETTERS[:4]:
            return found[1]
    return None


def _lm_eval_letter(response: str, choices: Sequence[str]) -> str | None:
    """Returns the letter of lm_eval's ``flexible-extract``: of the last ``(X)``, choice as text, or ``: X``."""
    letters = _LM_EVAL.findall(response)
    if letters:
        return letters[-1]
    texts = {_plain(choice.strip()): letter for letter, choice in zip(LETTERS, choices, strict=False)}
    some_choice = re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))
    found = some_choice.findall(_plain(response))
    if found and found[-1]:
        return texts.get(found[-1].strip())
    letters = _LM_EVAL_BARE.findall(response)
    return letters[-1] if letters else None


def _plain(text: str) -> str:
    return "".join(each for each in text.lower() if not unicodedata.category(each).startswith("P"))


TASK = Task(
    name="gpqa_diamond",
    data=Data(
        splits=("train",),
        hub=HubFiles("Idavidrein/gpqa", "633f5ee89ab8ad4522a9f850766b73f62147ffdd", "gpqa_diamond.csv"),
    ),
    protocols={
        "card": Protocol("model card of Qwen3.5-2B, Best Practices"),
        "official": Protocol(
            "https://github.com/idavidrein/gpqa baselines (zero_shot)", {"thinking": 32_768, "non_thinking": 2_048},
            sampling="greedy", cut_is_wrong=False,
        ),
        "lm-eval": Protocol(
            "lm_eval 0.4 gpqa/cot_zeroshot (2.2)", {"thinking": 32_768, "non_thinking": 2_048}, sampling="greedy",
            cut_is_wrong=False,
        ),
    },
    document=_document,
)  # fmt: skip
