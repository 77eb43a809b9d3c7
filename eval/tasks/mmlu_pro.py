r"""MMLU-Pro: 12,032 questions of 14 categories with up to ten options (arXiv:2406.01574; MIT).

| protocol | prompt | answer |
|---|---|---|
| card | the question, and the model card's request for ``"answer": "C"`` | the last choice that is stated |
| official | five solved examples of the category and the question, as one text | three patterns, see ``extract`` |
| lm-eval | the same, and as turns of a chat (task mmlu_pro) | the first ``answer is (X)`` alone |

The authors guess where nothing is found. Here such a response stays unparsed, and wrong in ``accuracy``; the metric
``accuracy_random_fallback`` counts it as what a guess is expected to gain, one over the number of options. The choices
whose log-likelihoods are compared are the letters, after the first five examples of any category, as in lm_eval's
leaderboard_mmlu_pro. A document's id is its ``question_id``.
"""

import re
from collections.abc import Sequence

from eval.protocols import Protocol, ProtocolName
from eval.scorers.choice import final_letter
from eval.tasks.base import Document, Message, Task, Verdict, user_turn
from eval.tasks.choices import LETTERS, card_prompt, letter_likelihood, letter_verdict, lettered, solved_examples
from eval.tasks.data import Data, HubFiles, Row

_SHOTS = 5
_MOST_OPTIONS = 10
_INSTRUCTION = (
    "The following are multiple choice questions (with answers) about {category}. Think step by step and then finish "
    'your answer with "the answer is (X)" where X is the correct letter choice.\n'
)
_OPENING = "Let's think step by step."

# The first and the third of the authors' patterns; the second is in _after_answer.
_ANSWER_IS = re.compile(r"answer is \(?([A-J])\)?")
_LETTER = re.compile(r"\b[A-J]\b")
_ANSWER_MARK = re.compile(r"(?=[aA]nswer:\s*([A-J]))")


def extract(response: str) -> str | None:
    """Returns the letter that the authors' chain of patterns finds, without its random last resort.

    Source: ``extract_answer`` of https://github.com/TIGER-AI-Lab/MMLU-Pro. Its ``.*[aA]nswer:\\s*([A-J])`` and
    ``\\b[A-J]\\b(?!.*\\b[A-J]\\b)`` take time in the square of the length; the searches here find the same letters.
    """
    found = _ANSWER_IS.search(response)
    if found is not None:
        return found[1]
    letter = _after_answer(response)
    if letter is not None:
        return letter
    for last in _LETTER.finditer(response):
        letter = last[0]
    return letter


def _after_answer(response: str) -> str | None:
    """Returns the letter after the last ``answer:`` of the first line with such a letter."""
    letter = None
    end = len(response)
    for mark in _ANSWER_MARK.finditer(response):
        if letter is None and (newline := response.find("\n", mark.start())) >= 0:
            end = newline
        if mark.start() > end:
            break
        letter = mark[1]
    return letter


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    question, options, answer, category = _fields(row)
    own = solved_examples(row, examples, "category", _SHOTS, split="validation")
    if protocol == "card":
        prompt = card_prompt(question, options)
    else:
        prompt = _official(row, own) if protocol == "official" else _lm_eval(row, own)
    messages = _lm_eval_turns(row, own) if protocol == "lm-eval" else user_turn(prompt)

    def score(response: str) -> Verdict:
        if protocol == "card":
            return letter_verdict(final_letter(response, len(options)), answer)
        if protocol == "lm-eval":
            found = _ANSWER_IS.search(response)
            return letter_verdict(found and found[1], answer)
        letter = extract(response)
        return letter_verdict(
            letter, answer, accuracy_random_fallback=[1 / len(options) if letter is None else letter == answer]
        )

    context = "".join(f"{_listed(shot)} {shot.get('answer', str)}\n\n" for shot in examples[:_SHOTS]) + _listed(row)
    likelihood = letter_likelihood(context, len(options), [LETTERS.index(answer)])
    return Document(
        row.get("question_id", int, str), messages, score,
        group=category, text=prompt, likelihood=likelihood, target=answer,
    )  # fmt: skip


def _fields(row: Row) -> tuple[str, list[str], str, str]:
    """Returns question, options, answer and category of a row, checked."""
    options, answer = row.get("options", list), row.get("answer", str)
    if not 1 <= len(options) <= _MOST_OPTIONS or not all(type(option) is str for option in options):
        raise ValueError(f"{row.where}: options={options!r}; give 1 to {_MOST_OPTIONS} strings.")
    if answer not in tuple(LETTERS[: len(options)]):
        raise ValueError(
            f"{row.where}: answer={answer!r}; the letters of its {len(options)} options are {LETTERS[: len(options)]}."
        )
    return row.get("question", str), options, answer, row.get("category", str)


def _listed(row: Row) -> str:
    """Returns a question with its options, up to the colon that the letter follows."""
    question, options, *_ = _fields(row)
    return f"{question}\n{lettered(options)}\nAnswer:"


def _question(row: Row, *, strip: bool) -> str:
    """Returns a question as its authors and lm_eval write it; only the latter strips the options."""
    question, options, *_ = _fields(row)
    return f"Question:\n{question}\nOptions:\n{lettered([each.strip() if strip else each for each in options])}\n"


def _official(row: Row, own: Sequence[Row]) -> str:
    parts = [_INSTRUCTION.format(category=row.get("category", str))]
    for shot in own:
        solution = shot.get("cot_content", str).replace(f"A: {_OPENING}", f"Answer: {_OPENING}")
        parts.append(f"{_question(shot, strip=False)}{solution}\n\n")
    return "".join(parts) + f"{_question(row, strip=False)}Answer: {_OPENING}"


def _lm_eval_parts(row: Row, own: Sequence[Row]) -> tuple[str, list[tuple[str, str]], str]:
    """Returns the instruction, the examples as question and solution, and the question."""
    asked = [f"{_question(each, strip=True)}Answer: {_OPENING}" for each in (*own, row)]
    solutions = [shot.get("cot_content", str).replace(f"A: {_OPENING} ", "") for shot in own]
    instruction = _INSTRUCTION.format(category=row.get("category", str))
    return instruction, list(zip(asked, solutions, strict=False)), asked[-1]


def _lm_eval(row: Row, own: Sequence[Row]) -> str:
    instruction, shots, question = _lm_eval_parts(row, own)
    return instruction + "".join(f"{asked} {solution}\n\n" for asked, solution in shots) + question


def _lm_eval_turns(row: Row, own: Sequence[Row]) -> list[Message]:
    instruction, shots, question = _lm_eval_parts(row, own)
    turns: list[Message] = [{"role": "system", "content": instruction}]
    for asked, solution in shots:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": solution}]
    return [*turns, *user_turn(question)]


TASK = Task(
    name="mmlu_pro",
    data=Data(
        splits=("test", "validation"),
        hub=HubFiles(
            "TIGER-Lab/MMLU-Pro", "b189ec765aa7ed75c8acfea42df31fdae71f97be", "data/{split}-00000-of-00001.parquet"
        ),
    ),
    protocols={
        "card": Protocol("model card of Qwen3.5-2B, Best Practices"),
        # A thought does not fit into the 2,048 tokens that both references give a base model.
        "official": Protocol(
            "https://github.com/TIGER-AI-Lab/MMLU-Pro evaluate_from_local.py",
            {"thinking": 32_768, "non_thinking": 2_048}, sampling="greedy", shots=_SHOTS, stop=("Question:",),
            cut_is_wrong=False,
        ),
        "lm-eval": Protocol(
            "lm_eval 0.4 mmlu_pro/_default_template_yaml (3.1)",
            {"thinking": 32_768, "non_thinking": 2_048}, sampling="greedy", shots=_SHOTS, stop=("Question:",),
            cut_is_wrong=False,
        ),
    },
    document=_document,
    shots_split="validation",
)  # fmt: skip
