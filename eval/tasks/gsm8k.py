r"""GSM8K: grade-school word problems with one number as the answer (arXiv:2110.14168).

| protocol | prompt | accuracy | strict |
|---|---|---|---|
| official | the question | final number | after ``####`` only, as in the authors' script |
| card | the question, and the model card's request for ``\boxed{}`` | final number | - |
| lm-eval | five solved problems and the question, as in its task gsm8k | flexible-extract | strict-match |

The final number is found and compared as ``eval.scorers.exact_match`` describes; a repeated question is left out of the
search. lm-evaluation-harness draws the solved problems anew for each document, from the training split with a fixed
seed; here they are the same, whichever documents are asked. They are also what a base model (style ``text``) needs, so
that the other protocols have no prompt of that style.

The file is also the command that turns the data (8,792 problems, openai/gsm8k on the hub, MIT) into training
conversations, with the solution as reasoning and the number as answer, or into questions for the task ``qa``:

    python -m eval.tasks.gsm8k train.jsonl conversations.jsonl
    python -m eval.tasks.gsm8k test.jsonl questions.jsonl --to questions

A row is ``{"question", "answer"}``. Its answer is a solution with calculator marks ``<<48/2=24>>`` and a last line
``#### 72``.
"""

import argparse
import functools
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from eval.protocols import Protocol, ProtocolName
from eval.scorers.exact_match import final_number, normalize
from eval.tasks.base import Document, Task, Verdict, user_turn
from eval.tasks.data import Data, HubFiles, Row
from qwen35_jax.command import one_line_errors

CARD_REQUEST = "Please reason step by step, and put your final answer within \\boxed{}."

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_FINAL_ANSWER = re.compile(r"(?:^|\s*\n)####\s*(-?[\d,]*\.?\d+)\s*$")
# How the authors and lm_eval's strict-match read a response, and how its flexible-extract does.
_MARKED = re.compile(r"#### (-?[0-9.,]+)")
_LM_EVAL_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LM_EVAL_STOPS = ("Question:", "</s>", "<|im_end|>")
_LM_EVAL_SHOTS, _LM_EVAL_SEED = 5, 1234
# A shorter one may be a part of the answer.
_LEAST_QUESTION = 20


def split_answer(answer: str) -> tuple[str, str]:
    """Splits a row's answer into the solution without calculator marks and the number without thousands commas.

    Raises:
      ValueError: the answer has no last line ``#### number``.
    """
    final = _FINAL_ANSWER.search(answer)
    if final is None:
        raise ValueError(f"the answer ends with {answer[-40:]!r}, not with a line '#### <number>'")
    return _CALCULATOR_MARK.sub("", answer[: final.start()]).strip(), _without_commas(final[1])


def _document(row: Row, protocol: ProtocolName, examples: Sequence[Row]) -> Document:
    question, answer = row.get("question", str), row.get("answer", str)
    try:
        number = split_answer(answer)[1]
    except ValueError as err:
        raise ValueError(f"{row.where}: answer={answer[-60:]!r} does not end in '#### NUMBER'.") from err
    target = normalize(number)
    if protocol == "lm-eval":
        prompt = _lm_eval_prompt(row, question, examples)
        return Document(
            row.own_id(),
            user_turn(prompt),
            lambda response: _score_lm_eval(response, answer),
            text=prompt,
            target=number,
        )
    prompt = question if protocol == "official" else f"{question}\n\n{CARD_REQUEST}"

    def score(response: str) -> Verdict:
        own = response.replace(question, " ") if len(question) >= _LEAST_QUESTION else response
        prediction = final_number(own)
        metrics: dict[str, list[float]] = {"accuracy": [prediction == target]}
        if protocol == "official":
            marked = _MARKED.search(own)
            metrics["strict"] = [marked is not None and _without_commas(marked[1]) == number]
        return Verdict(prediction == target, metrics, prediction, parsed=prediction is not None)

    return Document(row.own_id(), user_turn(prompt), score, target=number)


def _lm_eval_prompt(row: Row, question: str, examples: Sequence[Row]) -> str:
    if not examples:  # stored answers are scored, and nobody reads the prompt
        return f"Question: {question}\nAnswer:"
    if len(examples) < _LM_EVAL_SHOTS:
        raise ValueError(
            f"{row.where}: protocol lm-eval shows {_LM_EVAL_SHOTS} solved problems, but the training split has "
            f"{len(examples)}; give the whole of it, or --protocol official."
        )
    # Drawn for a power of two of documents at a time, which the cache then knows.
    places = _drawn_places(len(examples), 1 << row.number.bit_length())[row.number]
    shots = [(examples[place].get("question", str), examples[place].get("answer", str)) for place in places]
    solved = "".join(f"Question: {asked}\nAnswer: {solution}\n\n" for asked, solution in shots)
    return f"{solved}Question: {question}\nAnswer:"


@functools.lru_cache(maxsize=4)
def _drawn_places(population: int, documents: int) -> list[list[int]]:
    """Returns which rows of the training split stand before each document.

    Source: ``ContextSampler`` of lm_eval 0.4.13, which one generator serves for all documents in their order.
    """
    rng = random.Random(_LM_EVAL_SEED)
    return [rng.sample(range(population), _LM_EVAL_SHOTS) for _ in range(documents)]


def _score_lm_eval(response: str, answer: str) -> Verdict:
    """Judges a response as lm-evaluation-harness's gsm8k does, its stop strings included."""
    for stop in _LM_EVAL_STOPS:
        response = response.partition(stop)[0]
    numbers = _LM_EVAL_FLEXIBLE.findall(response)
    flexible = "".join(numbers[-1]) if numbers else None
    strict = _MARKED.search(response)
    target = _lm_eval_form(answer)
    correct = flexible is not None and _lm_eval_form(flexible) == target
    metrics: dict[str, list[float]] = {
        "accuracy": [correct],
        "strict": [strict is not None and _lm_eval_form(strict.group(1)) == target],
    }
    return Verdict(correct, metrics, flexible, parsed=flexible is not None)


def _lm_eval_form(text: str) -> str:
    for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(pattern, "", text)
    return text.casefold()


def _without_commas(number: str) -> str:
    return number.strip().replace(",", "")


TASK = Task(
    name="gsm8k",
    data=Data(
        splits=("test",),
        hub=HubFiles(
            "openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", "main/{split}-00000-of-00001.parquet"
        ),
    ),
    protocols={
        "card": Protocol("model card of Qwen3.5-2B, Best Practices"),
        "official": Protocol(
            "https://arxiv.org/abs/2110.14168", {"thinking": 32_768, "non_thinking": 4_096}, sampling="greedy",
            cut_is_wrong=False,
        ),
        "lm-eval": Protocol(
            "lm_eval 0.4.13 gsm8k.yaml", {"thinking": 32_768, "non_thinking": 256}, sampling="greedy",
            shots=_LM_EVAL_SHOTS, stop=_LM_EVAL_STOPS, cut_is_wrong=False, max_text_tokens=256,
        ),
    },
    document=_document,
    shots_split="train",
)  # fmt: skip


def to_conversation(row: dict[str, str]) -> dict[str, Any]:
    """Makes a training conversation: the question, and the number with the solution as its reasoning."""
    solution, number = split_answer(row["answer"])
    return {
        "messages": [
            {"role": "user", "content": row["question"].strip()},
            {"role": "assistant", "reasoning_content": solution, "content": number},
        ]
    }


def to_question(row: dict[str, str]) -> dict[str, Any]:
    """Makes a row of the task ``qa``: the question and the bare number."""
    return {"question": row["question"].strip(), "answer": split_answer(row["answer"])[1]}


def convert(source: Path, target: Path, *, to: Literal["conversations", "questions"] = "conversations") -> int:
    """Converts a file and returns the number of rows; nothing is written if a row is wrong.

    Raises:
      ValueError: a row is not GSM8K's, or the target exists; the message names the line.
    """
    make = {"conversations": to_conversation, "questions": to_question}[to]
    if target.exists():
        raise ValueError(f"{target} exists; name a new file or remove it.")
    rows = []
    # Not splitlines(), which also breaks at characters that JSON leaves inside a string.
    for number, line in enumerate(source.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(make(json.loads(line)))
        except (KeyError, TypeError) as err:
            raise ValueError(f"{source} line {number}: not an object with question and answer ({err})") from err
        except ValueError as err:
            raise ValueError(f"{source} line {number}: {err}") from err
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN.jsonl")
    parser.add_argument("target", type=Path, metavar="OUT.jsonl")
    parser.add_argument("--to", choices=("conversations", "questions"), default="conversations")
    options = parser.parse_args(arguments)
    with one_line_errors():
        count = convert(options.source, options.target, to=options.to)
    print(f"{count} rows written to {options.target}")


if __name__ == "__main__":
    main()
