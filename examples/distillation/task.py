"""A task whose answers may be worded in several ways, each with a known probability.

    question    calm four: six five
    answer      six plus four makes three
                three with five gives one

A dial with seven numbers shows four and is turned by six and by five. Each line of the answer is a sum modulo seven.
The order of its terms, the joining word, the verb and the result are drawn; with what probability depends on the manner
(calm) and on the words before. A result is wrong in 15 % of the lines, and the next line goes on from what was written.
That is the short kind of the task; in the long one there are five or six turns, and no result is wrong.

So the true distribution of the next word is known at every place of an answer, and what a model says can be compared
with it exactly.
"""

import functools
import itertools
import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen35_jax.processing.tokenizer import END_OF_TURN

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
MANNERS = ("calm", "brisk", "formal", "merry")
JOINERS = ("plus", "and", "with", "upon")
VERBS = ("makes", "gives", "shows", "leaves")
WRONG = 0.15
"""How often the result of a line is not the sum, in the short kind and in rough answers of both."""
LINE = 6
"""Words of a line, with what ends it: a line break, or the end of the turn."""


@dataclass(frozen=True)
class Kind:
    """A kind of the task, and what training on it takes."""

    num_turns: tuple[int, ...]
    wrong: float
    """How often the result of a line is not the sum."""
    max_prompt_tokens: int
    """Most tokens of a rendered question."""
    max_new_tokens: int
    """The limit of a model's answer; a right one has at most 18, or 36."""
    sequence_length: int
    """Of a packed sequence: four documents of the greatest length."""
    base_steps: int
    teacher_steps: int


KINDS = {
    "short": Kind((2, 3), WRONG, 22, 26, sequence_length=192, base_steps=600, teacher_steps=1500),
    "long": Kind((5, 6), 0.0, 24, 40, sequence_length=256, base_steps=500, teacher_steps=1200),
}
KindName = Literal["short", "long"]

# There are too many long questions to list them all.
_LONG_QUESTIONS = 40_000
_HELD_OUT = 0.25
_TABLE_SEED = 2026


@dataclass(frozen=True)
class Problem:
    """A question."""

    manner: str
    start: int
    turns: tuple[int, ...]
    wrong: float = WRONG
    """How often the result of a line of its answer is not the sum."""

    @property
    def question(self) -> str:
        """The user's message."""
        return f"{self.manner} {NUMBERS[self.start]}: {' '.join(NUMBERS[turn] for turn in self.turns)}"

    @property
    def total(self) -> str:
        """What the dial shows at the end."""
        return NUMBERS[(self.start + sum(self.turns)) % len(NUMBERS)]

    def is_right(self, answer: str) -> bool:
        """Whether the last word of an answer is what the dial shows at the end."""
        return answer.split()[-1:] == [self.total]


@functools.cache
def questions(kind: KindName = "short", *, held_out: bool) -> tuple[Problem, ...]:
    """Returns the questions of a kind in random order: those that may be trained, or those that never are."""
    rng, numbers, counts = random.Random(0), range(len(NUMBERS)), KINDS[kind].num_turns
    if kind == "short":
        every = [
            Problem(manner, start, turns)
            for manner, start, count in itertools.product(MANNERS, numbers, counts)
            for turns in itertools.product(numbers[1:], repeat=count)
        ]
        rng.shuffle(every)
    else:
        found: dict[Problem, None] = {}
        while len(found) < _LONG_QUESTIONS:
            count, manner, start = rng.choice(counts), rng.choice(MANNERS), rng.choice(numbers)
            turns = tuple(rng.choices(numbers[1:], k=count))
            found[Problem(manner, start, turns, KINDS[kind].wrong)] = None
        every = list(found)
    cut = round(len(every) * _HELD_OUT)
    return tuple(every[:cut] if held_out else every[cut:])


def next_words(problem: Problem, written: Sequence[str], *, rough: bool = False) -> dict[str, float]:
    """Returns the true distribution of the next word of an answer.

    Words have their blank in front of them, as tokens have, so an answer is all of its words joined. The last one is
    the end of the turn.

    Args:
      written: the words so far, which the task can have written.
      rough: every form is as likely as the others, and results are as wrong as those of the short kind.
    """
    line, place = divmod(len(written), LINE)
    own = [word.strip() for word in written[line * LINE :]]
    shown = NUMBERS[problem.start] if line == 0 else written[line * LINE - 2].strip()
    turn = NUMBERS[problem.turns[line]]
    if place == 0:
        return _order(shown, turn, _forms("order", 2, problem.manner, turn, rough=rough))
    if place == 1:
        found = dict(zip(JOINERS, _forms("joiner", len(JOINERS), problem.manner, own[0], rough=rough), strict=True))
    elif place == 2:
        found = {shown if own[0] == turn else turn: 1.0}
    elif place == 3:
        found = dict(zip(VERBS, _forms("verb", len(VERBS), own[1], own[2], rough=rough), strict=True))
    elif place == 4:
        found = _result(own[0], own[2], WRONG if rough else problem.wrong)
    else:
        return {"\n" if line + 1 < len(problem.turns) else END_OF_TURN: 1.0}
    return {f" {word}": probability for word, probability in found.items()}


def draw_answers(problems: Iterable[Problem], seed: int, *, rough: bool = False) -> list[list[str]]:
    """Draws the words of an answer to each question."""
    rng = random.Random(f"answers {seed}")
    return [_draw_answer(problem, rng, rough) for problem in problems]


def conditionals(problem: Problem, answer: Sequence[str]) -> list[dict[str, float]]:
    """Returns the true distribution at each word of an answer of the task."""
    return [next_words(problem, answer[:place]) for place in range(len(answer))]


def words() -> list[str]:
    """Returns every word that an answer may hold. A number has no blank in front where it begins a line."""
    return [*NUMBERS, *(f" {word}" for word in (*NUMBERS, *JOINERS, *VERBS)), "\n", END_OF_TURN]


def text_of(answer: Iterable[str]) -> str:
    """Returns what stands in a conversation: the words without the end of the turn."""
    return "".join(word for word in answer if word != END_OF_TURN)


def example_texts() -> list[str]:
    """Returns texts with every word of the task, with and without a blank in front. A tokenizer is built from them."""
    words = (*NUMBERS, *MANNERS, *JOINERS, *VERBS)
    return [f"{word} {word}\n{word}:" for word in words] * 100


def draw_conversations(
    count: int, seed: int, *, rough: bool = False, kind: KindName = "short"
) -> list[tuple[Problem, str]]:
    """Draws questions that may be trained, and an answer to each. Equal seeds give equal conversations."""
    problems = random.Random(seed).choices(questions(kind, held_out=False), k=count)
    answers = draw_answers(problems, seed, rough=rough)
    return [(problem, text_of(answer)) for problem, answer in zip(problems, answers, strict=True)]


def write_conversations(path: Path, conversations: Iterable[tuple[Problem, str]]) -> None:
    """Writes conversations as rows that training reads."""
    with path.open("w", encoding="utf-8") as file:
        for problem, answer in conversations:
            turns = [("user", problem.question), ("assistant", answer)]
            row = {"messages": [{"role": role, "content": content} for role, content in turns]}
            file.write(json.dumps(row) + "\n")


def _draw_answer(problem: Problem, rng: random.Random, rough: bool) -> list[str]:
    written: list[str] = []
    while not written or written[-1] != END_OF_TURN:
        found = next_words(problem, written, rough=rough)
        written += rng.choices(list(found), list(found.values()))
    return written


def _order(shown: str, turn: str, probabilities: Sequence[float]) -> dict[str, float]:
    return {turn: 1.0} if shown == turn else dict(zip((shown, turn), probabilities, strict=True))


def _forms(name: str, count: int, word: str, number: str, *, rough: bool) -> list[float]:
    return [1 / count] * count if rough else _table(name, count)[word, number]


def _result(first: str, second: str, wrong: float) -> dict[str, float]:
    right = NUMBERS[(NUMBERS.index(first) + NUMBERS.index(second)) % len(NUMBERS)]
    if not wrong:
        return {right: 1.0}
    each = wrong / (len(NUMBERS) - 1)
    return {word: 1 - wrong if word == right else each for word in NUMBERS}


@functools.cache
def _table(name: str, count: int) -> dict[tuple[str, str], list[float]]:
    """Draws a distribution over ``count`` forms for each pair of a word and a number."""
    rng = random.Random(f"{_TABLE_SEED} {name}")
    table = {}
    for key in itertools.product(JOINERS if name == "verb" else MANNERS, NUMBERS):
        weights = [math.exp(1.5 * rng.gauss(0, 1)) for _ in range(count)]
        table[key] = [weight / sum(weights) for weight in weights]
    return table
