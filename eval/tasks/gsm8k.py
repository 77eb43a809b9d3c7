r"""GSM8K: grade-school word problems with one number as the answer (arXiv:2110.14168).

| protocol | prompt | accuracy | strict |
|---|---|---|---|
| official | the question | final number | after ``####`` only, as in the authors' script |
| card | the question, and the model card's request for ``\boxed{}`` | final number | - |
| lm-eval | ``Q: ... A: Let's think step by step.`` (gsm8k_cot_zeroshot) | flexible-extract | strict-match |

The final number is found and compared as ``eval.scorers.exact_match`` describes.

The file is also the command that turns the data (8,792 problems, openai/gsm8k on the hub, MIT) into training
conversations, with the solution as reasoning and the number as answer, or into questions for the task ``qa``:

    python -m eval.tasks.gsm8k train.jsonl conversations.jsonl
    python -m eval.tasks.gsm8k test.jsonl questions.jsonl --to questions

A row is ``{"question", "answer"}``. Its answer is a solution with calculator marks ``<<48/2=24>>`` and a last line
``#### 72``.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.protocols import Protocol, ProtocolName
from eval.scorers.exact_match import final_number, normalize
from eval.tasks.base import Document, Task, Verdict, user_turn
from eval.tasks.data import Data, HubFiles, Row
from qwen35_jax.command import one_line_errors

CARD_REQUEST = "Please reason step by step, and put your final answer within \\boxed{}."

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_FINAL_ANSWER = re.compile(r"\s*\n####\s*(-?[\d,]*\.?\d+)\s*$")
# How the two reference scorers read a response; the first group that took part is the answer.
_AUTHORS = re.compile(r"#### (-?[0-9.,]+)")
_LM_EVAL_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LM_EVAL_STRICT = re.compile(r"The answer is (-?[0-9.,]+).")
_LM_EVAL_STOP = "Q:"


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
    prompts = {
        "official": question,
        "card": f"{question}\n\n{CARD_REQUEST}",
        "lm-eval": f"Q: {question}\nA: Let's think step by step.",
    }

    def score(response: str) -> Verdict:
        if protocol == "lm-eval":
            return _score_lm_eval(response, answer)
        prediction = final_number(response)
        metrics: dict[str, list[float]] = {"accuracy": [prediction == target]}
        if protocol == "official":
            marked = _AUTHORS.search(response)
            metrics["strict"] = [marked is not None and _without_commas(marked[1]) == number]
        return Verdict(prediction == target, metrics, prediction, parsed=prediction is not None)

    return Document(row.own_id(), user_turn(prompts[protocol]), score, text=prompts[protocol], target=number)


def _score_lm_eval(response: str, answer: str) -> Verdict:
    """Judges a response as lm-evaluation-harness's gsm8k_cot_zeroshot does, its stop string included."""
    response = response.split(_LM_EVAL_STOP)[0]
    numbers = _LM_EVAL_FLEXIBLE.findall(response)
    flexible = "".join(numbers[-1]) if numbers else None
    strict = _LM_EVAL_STRICT.search(response)
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
            "lm_eval 0.4 gsm8k-cot-zeroshot.yaml", {"thinking": 256, "non_thinking": 256}, sampling="greedy",
            cut_is_wrong=False,
        ),
    },
    document=_document,
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


def convert(source: Path, target: Path, *, to: str = "conversations") -> int:
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
