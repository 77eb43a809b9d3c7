"""MMLU: 14,042 questions of 57 subjects with four options (arXiv:2009.03300; MIT).

| protocol | prompt | answer |
|---|---|---|
| card | the question, and the model card's request for ``"answer": "C"`` | the last choice that is stated |
| official | five answered examples of the subject and the question, as one text | the letter it begins with |
| lm-eval | the same, and as turns of a chat (mmlu, mmlu_generative) | the first line, if it is only a letter |

A base model is asked by log-likelihood (``--style likelihood``): the authors and lm_eval compare the four letters after
the examples. Their prompts differ by one space before the subject, and lm_eval strips the question. Rows are those of
cais/mmlu, ``{"question", "subject", "choices", "answer"}``, where ``answer`` is the place of the right choice from 0; a
folder for each subject does as well.
"""

import re
import string
from collections.abc import Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.choice import final_letter
from eval.tasks.base import Document, Message, Task, Verdict, user_turn
from eval.tasks.choices import LETTERS, card_prompt, letter_likelihood, letter_verdict, lettered, solved_examples
from eval.tasks.data import Data, HubFiles, Row

_SHOTS = 5
_OPTIONS = LETTERS[:4]
_FIRST_LETTER = re.compile(r"\W{0,8}([A-D])(?!\w)")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    question, choices, answer, subject = _fields(row)
    own = solved_examples(row, examples, "subject", _SHOTS, split="dev")
    strip = protocol != "official"
    instruction = _instruction(subject, strip=strip)
    context = instruction + "".join(f"{_listed(each, strip=strip)} {_fields(each)[2]}\n\n" for each in own)
    context += _listed(row, strip=strip)
    prompt = card_prompt(question, choices) if protocol == "card" else context
    messages = user_turn(prompt)
    if protocol == "lm-eval":
        messages = _turns(instruction, row, own)

    def score(response: str) -> Verdict:
        if protocol == "card":
            return letter_verdict(final_letter(response, len(choices)), answer)
        return letter_verdict(_first_letter(response) if protocol == "official" else _first_line(response), answer)

    return Document(
        row.own_id(), messages, score, group=subject, text=prompt,
        likelihood=letter_likelihood(context, len(choices), [LETTERS.index(answer)]), target=answer,
    )  # fmt: skip


def _fields(row: Row) -> tuple[str, list[str], str, str]:
    """Returns question, choices, the letter of the answer and the subject of a row, checked."""
    choices, answer = row.get("choices", list), row.get("answer", int)
    if len(choices) != len(_OPTIONS) or not all(type(choice) is str for choice in choices):
        raise ValueError(f"{row.where}: choices={choices!r}; give {len(_OPTIONS)} strings.")
    if not 0 <= answer < len(_OPTIONS):
        raise ValueError(f"{row.where}: answer={answer}; give the place of the right choice, 0 to {len(_OPTIONS) - 1}.")
    return row.get("question", str), choices, _OPTIONS[answer], row.get("subject", str)


def _instruction(subject: str, *, strip: bool) -> str:
    # The authors put a space before every word of a subject, the first one too.
    words = " ".join(subject.split("_"))
    return f"The following are multiple choice questions (with answers) about {'' if strip else ' '}{words}.\n\n"


def _listed(row: Row, *, strip: bool) -> str:
    question, choices, *_ = _fields(row)
    return f"{question.strip() if strip else question}\n{lettered(choices)}\nAnswer:"


def _turns(instruction: str, row: Row, own: Sequence[Row]) -> list[Message]:
    turns: list[Message] = [{"role": "system", "content": instruction}]
    for each in own:
        turns += [
            {"role": "user", "content": _listed(each, strip=True)},
            {"role": "assistant", "content": _fields(each)[2]},
        ]
    return [*turns, *user_turn(_listed(row, strip=True))]


def _first_letter(response: str) -> str | None:
    found = _FIRST_LETTER.match(response.lstrip())
    return found and found[1]


def _first_line(response: str) -> str | None:
    """Returns the letter that is the whole first line, in any case and with punctuation, as in mmlu_generative."""
    line = response.lstrip().partition("\n")[0].strip()
    letter = line.translate(_NO_PUNCTUATION).upper()
    return letter if letter in tuple(_OPTIONS) else None


# The letter comes at once, and what follows does not count; this mark ends the next question that a base model invents.
_STOP = ("\nAnswer:",)

TASK = Task(
    name="mmlu",
    data=Data(
        splits=("test", "validation", "dev"),
        hub=HubFiles(
            "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe", "all/{split}-00000-of-00001.parquet"
        ),
    ),
    protocols={
        "card": Protocol("model card of Qwen3.5-2B, Best Practices"),
        "official": Protocol(
            "https://github.com/hendrycks/test evaluate_hf.py", {"thinking": 32_768, "non_thinking": 256},
            sampling="greedy", shots=_SHOTS, stop=_STOP, cut_is_wrong=False, max_text_tokens=256,
        ),
        "lm-eval": Protocol(
            "lm_eval 0.4 mmlu/default and mmlu/generative", {"thinking": 32_768, "non_thinking": 256},
            sampling="greedy", shots=_SHOTS, stop=_STOP, cut_is_wrong=False, max_text_tokens=256,
        ),
    },
    document=_document,
    shots_split="dev",
)  # fmt: skip
