"""The task of the quickstart: a dial with ten digits is turned a few times; which digit does it show at the end?

    question    A dial from 0 to 9 shows 4.
                Monday +8
                Tuesday +5
                Wednesday +3
                Where does it end?
    reasoning   Monday 4+8=2
                Tuesday 2+5=7
                Wednesday 7+3=0
    answer      0

Each line of the reasoning is easy, but all of them at once are hard. A model that reasons first should be right. One
that answers at once should mostly be wrong.

The base model is trained on plain text: single sums, and lists of turns in which some turns are repeated. This text has
no question, no chain of sums and no chat.
"""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_DIGITS = 10
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
NUM_TURNS = (2, 3, 4, 5)
"""How many turns a question may have."""


@dataclass(frozen=True)
class Problem:
    """A question, its reasoning and its answer."""

    start: int
    turns: tuple[int, ...]

    @property
    def question(self) -> str:
        """The user's message."""
        plan = "\n".join(_plan(self.turns))
        return f"A dial from 0 to {NUM_DIGITS - 1} shows {self.start}.\n{plan}\nWhere does it end?"

    @property
    def reasoning(self) -> str:
        """One line for each turn."""
        shown = [(self.start + sum(self.turns[:done])) % NUM_DIGITS for done in range(len(self.turns))]
        return "\n".join(f"{day} {_sum(a, b)}" for day, a, b in zip(DAYS, shown, self.turns, strict=False))

    @property
    def answer(self) -> str:
        """One digit."""
        return str((self.start + sum(self.turns)) % NUM_DIGITS)


def make_problems(count: int, seed: int) -> list[Problem]:
    """Draws distinct problems in random order. Equal seeds give equal problems."""
    rng = random.Random(seed)
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        problems.setdefault(Problem(rng.randrange(NUM_DIGITS), _random_turns(rng)))
    # There are few short problems, so all of them are drawn early. Without a shuffle the end of the list had none.
    return rng.sample(list(problems), count)


def make_texts(count: int, seed: int) -> list[str]:
    """Draws the plain text for the base model: a third is sums, the rest is plans with repeated lines."""
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        if number % 3 == 0:
            lines = [_sum(rng.randrange(NUM_DIGITS), rng.randrange(NUM_DIGITS)) for _ in range(10)]
        else:
            plan = _plan(_random_turns(rng))
            lines = [*plan, *rng.choices(plan, k=15)]
        texts.append("\n".join(lines))
    return texts


def example_texts() -> list[str]:
    """Returns texts that contain every word of the task. A tokenizer is built from them."""
    problems = make_problems(100, seed=1)
    return [text for problem in problems for text in (problem.question, problem.reasoning)]


def write_task(folder: Path, *, num_texts: int, num_train: int, num_test: int, seed: int = 0) -> None:
    """Writes the files of the task. No held-out question is also a training question.

    - ``base.jsonl``: rows ``{"text"}``.
    - ``train.jsonl``: conversations. Every fourth has no reasoning, so that both modes are trained.
    - ``qa/test.jsonl``: held-out rows ``{"question", "answer"}``, which the benchmark ``qa`` reads.
    """
    problems = make_problems(num_train + num_test, seed)
    train, test = problems[:num_train], problems[num_train:]
    (folder / "qa").mkdir(parents=True, exist_ok=True)
    _write_rows(folder / "base.jsonl", ({"text": text} for text in make_texts(num_texts, seed)))
    _write_rows(folder / "train.jsonl", (_conversation(p, thinking=i % 4 > 0) for i, p in enumerate(train)))
    _write_rows(folder / "qa" / "test.jsonl", ({"question": p.question, "answer": p.answer} for p in test))


def _conversation(problem: Problem, *, thinking: bool) -> dict[str, Any]:
    reply = {"role": "assistant", "content": problem.answer}
    if thinking:
        reply["reasoning_content"] = problem.reasoning
    return {"messages": [{"role": "user", "content": problem.question}, reply]}


def _random_turns(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randrange(1, NUM_DIGITS) for _ in range(rng.choice(NUM_TURNS)))


def _plan(turns: Iterable[int]) -> list[str]:
    return [f"{day} +{turn}" for day, turn in zip(DAYS, turns, strict=False)]


def _sum(a: int, b: int) -> str:
    return f"{a}+{b}={(a + b) % NUM_DIGITS}"


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
