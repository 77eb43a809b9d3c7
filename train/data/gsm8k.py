"""Turns GSM8K into training conversations, the solution as reasoning and the number as answer, or into questions.

    python -m train.data.gsm8k train.jsonl conversations.jsonl
    python -m train.data.gsm8k test.jsonl questions.jsonl --to questions

GSM8K: 8,792 grade-school problems (openai/gsm8k on the hub, MIT), rows ``{"question", "answer"}`` whose answer is a
solution with calculator marks ``<<48/2=24>>`` and a last line ``#### 72``.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from qwen35_jax.command import one_line_errors

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_FINAL_ANSWER = re.compile(r"\s*\n####\s*(-?[\d,]*\.?\d+)\s*$")


def split_answer(answer: str) -> tuple[str, str]:
    """Splits a GSM8K answer into the solution without calculator marks and the number without thousands commas.

    Raises:
      ValueError: the answer has no last line ``#### number``.
    """
    final = _FINAL_ANSWER.search(answer)
    if final is None:
        raise ValueError(f"the answer ends with {answer[-40:]!r}, not with a line '#### <number>'")
    return _CALCULATOR_MARK.sub("", answer[: final.start()]).strip(), final[1].replace(",", "")


def to_conversation(row: dict[str, str]) -> dict[str, Any]:
    """Makes a training row: the question, and the number with the solution as its reasoning."""
    solution, number = split_answer(row["answer"])
    return {
        "messages": [
            {"role": "user", "content": row["question"].strip()},
            {"role": "assistant", "reasoning_content": solution, "content": number},
        ]
    }


def to_question(row: dict[str, str]) -> dict[str, Any]:
    """Makes a row for exact-match question answering: the question and the bare number."""
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
    """The command line; see the module."""
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
