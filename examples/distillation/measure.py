"""Compares exported models with the true distribution of the task and with a teacher.

    python -m examples.distillation.measure --teacher DIR --models DIR... --out FILE.json [--seed 0] [--questions 1000]

Each model reads true answers to held-out questions, and answers the questions itself, at temperature 1 and greedily.
The file holds for each model what ``Figures`` says, with a 95 % interval by resampling the questions.

Letters: N questions, A words of an answer, T tokens, V vocabulary, K words that the task may write at a place.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

import qwen35_jax
from examples.distillation import task
from qwen35_jax.command import one_line_errors, parse
from qwen35_jax.compiled import keep_compiled_programs
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.tokenizer import Tokenizer

_ROWS = 100
_DRAWS = 1000


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    teacher: Path
    models: tuple[Path, ...]
    """Exported models of one size. The teacher itself is measured after them."""
    out: Path
    seed: int = 0
    """Which questions, which answers to them, and what is sampled."""
    questions: int = 1000
    kind: task.KindName = "short"
    """Of the task."""


@dataclass
class Figures:
    """Sums over the tokens, or the answers, of each question, and how many there are: float64 [N, 2] each."""

    nll: np.ndarray
    """Cross-entropy of the true distribution with the model's, on true answers."""
    kl_teacher: np.ndarray
    """KL(teacher, model) on true answers."""
    kl_own: np.ndarray
    """KL(model, teacher) on the model's own samples."""
    entropy_own: np.ndarray
    """Entropy of the model on its own samples."""
    accuracy_greedy: np.ndarray
    accuracy_sampled: np.ndarray
    length: np.ndarray
    """Tokens of a sample, its end included."""
    truncated: np.ndarray
    """Samples that reached the limit without an end."""

    def summary(self, rng: np.random.Generator) -> dict[str, dict[str, float]]:
        """Returns the value of each figure and its 95 % interval over questions."""
        names = [each.name for each in dataclasses.fields(self)]
        return {name: _ratio(getattr(self, name), rng) for name in names}


class Place(NamedTuple):
    """The true distribution at a place of an answer."""

    ids: Int[np.ndarray, " K"]
    """The tokens that may stand there."""
    probabilities: Float[np.ndarray, " K"]


@dataclass(frozen=True)
class Exam:
    """Held-out questions with true answers."""

    kind: task.Kind
    tokenizer: Tokenizer
    problems: list[task.Problem]
    prompts: list[list[int]]
    rows: list[list[int]]
    """The tokens of the answers."""
    truth: list[list[Place]]

    @classmethod
    def draw(cls, tokenizer: Tokenizer, count: int, seed: int, kind: task.KindName = "short") -> "Exam":
        """Draws questions that are never trained, and an answer to each."""
        held_out = task.questions(kind, held_out=True)
        chosen = np.random.default_rng(seed).choice(len(held_out), count, replace=False)
        problems = [held_out[place] for place in chosen]
        ids = {word: _token_of(word, tokenizer) for word in task.words()}

        def place_of(found: Mapping[str, float]) -> Place:
            return Place(np.array([ids[word] for word in found]), np.array(list(found.values())))

        prompts = [tokenizer.encode_chat([{"role": "user", "content": each.question}]) for each in problems]
        answers = task.draw_answers(problems, seed)
        truth = map(task.conditionals, problems, answers)
        rows = [[ids[word] for word in answer] for answer in answers]
        return cls(
            task.KINDS[kind], tokenizer, problems, prompts, rows, [list(map(place_of, places)) for places in truth]
        )


def _token_of(word: str, tokenizer: Tokenizer) -> int:
    if word == task.END_OF_TURN:
        return tokenizer.token_id(word)
    (token,) = tokenizer.encode(word)
    return token


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        settings = parse(
            sys.argv[1:] if argv is None else argv, Settings, program="python -m examples.distillation.measure"
        )
        keep_compiled_programs()
        teacher = qwen35_jax.load(settings.teacher, dtype="float32")
        exam = Exam.draw(Tokenizer.from_pretrained(settings.teacher), settings.questions, settings.seed, settings.kind)
        found = {}
        for name, figures in measure(exam, teacher, settings.models, seed=settings.seed):
            found[name] = figures.summary(np.random.default_rng(settings.seed))
            print(name, {key: round(value["value"], 4) for key, value in found[name].items()}, flush=True)
    settings.out.write_text(json.dumps({"floor": floor(exam), "models": found}, indent=2) + "\n", encoding="utf-8")


def measure(exam: Exam, teacher: Qwen35, folders: Sequence[Path], *, seed: int) -> Iterator[tuple[str, Figures]]:
    """Yields the name and the figures of each model, and of the teacher at last."""
    taught = log_probs(teacher, exam, exam.rows)
    engine = None
    for folder in folders:
        model = qwen35_jax.load(folder, dtype="float32")
        engine = engine or _engine_of(model, exam)
        # The models are of one size, so that the programs of the first one serve all of them.
        engine.model = model
        yield str(folder), examine(exam, engine, teacher, taught, seed=seed)
    yield "teacher", examine(exam, _engine_of(teacher, exam), teacher, taught, seed=seed)


def examine(exam: Exam, engine: Engine, teacher: Qwen35, taught: Sequence[np.ndarray], *, seed: int) -> Figures:
    """Returns the figures of the model of an engine.

    Args:
      taught: the teacher's log-probabilities on the true answers.
    """
    own = log_probs(engine.model, exam, exam.rows)
    samples = answer(engine, exam, temperature=1.0, seed=seed)
    on_samples = [log_probs(model, exam, samples) for model in (engine.model, teacher)]
    ends = set(exam.tokenizer.eos_token_ids)
    return Figures(
        nll=_with_counts(map(cross_entropy, exam.truth, own), exam.rows),
        kl_teacher=_with_counts(map(kl, taught, own), exam.rows),
        kl_own=_with_counts(map(kl, *on_samples), samples),
        entropy_own=_with_counts([-np.sum(np.exp(each) * each) for each in on_samples[0]], samples),
        accuracy_greedy=_right(exam, answer(engine, exam, temperature=0.0, seed=seed)),
        accuracy_sampled=_right(exam, samples),
        length=_one_each([len(sample) for sample in samples]),
        truncated=_one_each([sample[-1] not in ends for sample in samples]),
    )


def _engine_of(model: Qwen35, exam: Exam) -> Engine:
    # A chunk is read in full, and a page of 64 tokens holds a document.
    return Engine(model, exam.tokenizer, slots=_ROWS, cache_tokens=_ROWS * 64, prefill_chunk=32)


def floor(exam: Exam) -> dict[str, float]:
    """Returns the figures of the truth itself: no model has a lower cross-entropy."""
    entropies = [-np.sum(place.probabilities * np.log(place.probabilities)) for each in exam.truth for place in each]
    return {
        "nll": float(np.mean(entropies)),
        "accuracy_sampled": float(_right(exam, exam.rows)[:, 0].mean()),
        "length": float(np.mean([len(row) for row in exam.rows])),
    }


def answer(engine: Engine, exam: Exam, *, temperature: float, seed: int) -> list[list[int]]:
    """Returns the tokens that a model writes to each question."""
    sampling = SamplingParams(temperature=temperature)
    completions = engine.generate(exam.prompts, sampling=sampling, max_new_tokens=exam.kind.max_new_tokens, seed=seed)
    return [list(completion.token_ids) for completion in completions]


def log_probs(model: Qwen35, exam: Exam, answers: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Returns the model's log-probabilities of all tokens at every place of each answer: float32 [A, V] each."""
    count, longest = len(exam.prompts), exam.kind.max_new_tokens
    size, length = -(-count // _ROWS) * _ROWS, exam.kind.max_prompt_tokens + longest
    ids, first = np.zeros((size, length), np.int32), np.zeros(size, np.int32)
    lengths = np.ones(size, np.int32)
    for place, (prompt, written) in enumerate(zip(exam.prompts, answers, strict=True)):
        row = [*prompt, *written]
        ids[place, : len(row)], first[place], lengths[place] = row, len(prompt) - 1, len(row)
    segments = (np.arange(length) < lengths[:, None]).astype(np.int32)
    places = first[:, None] + np.arange(longest, dtype=np.int32)
    found = []
    for start in range(0, size, _ROWS):
        part = slice(start, start + _ROWS)
        found += list(np.asarray(_log_probs(model, *(jnp.asarray(each[part]) for each in (ids, segments, places)))))
    return [each[: len(written)] for each, written in zip(found[:count], answers, strict=True)]


@nnx.jit
def _log_probs(
    model: Qwen35, ids: Int[Array, "N T"], segments: Int[Array, "N T"], places: Int[Array, "N A"]
) -> Float[Array, "N A V"]:
    hidden, _ = model.forward(ids, segments)
    return jax.nn.log_softmax(model.head_logits(jnp.take_along_axis(hidden, places[:, :, None], axis=1)))


def cross_entropy(truth: Sequence[Place], own: Float[np.ndarray, "A V"]) -> float:
    """Returns the sum over places of the cross-entropy of the true distribution with a model's."""
    return -sum(float(place.probabilities @ each[place.ids]) for place, each in zip(truth, own, strict=True))


def kl(first: Float[np.ndarray, "A V"], second: Float[np.ndarray, "A V"]) -> float:
    """Returns the sum over places of KL(first, second)."""
    return float(np.sum(np.exp(first) * (first - second)))


def _right(exam: Exam, answers: Sequence[Sequence[int]]) -> np.ndarray:
    texts = (exam.tokenizer.decode(each, skip_special_tokens=True) for each in answers)
    return _one_each([problem.is_right(text) for problem, text in zip(exam.problems, texts, strict=True)])


def _with_counts(sums: Iterable[float], rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([[value, len(row)] for value, row in zip(sums, rows, strict=True)], float)


def _one_each(values: Sequence[float]) -> np.ndarray:
    return np.array([[value, 1] for value in values], float)


def _ratio(sums: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Returns the sum of the first column over that of the second, with its interval by the bootstrap over rows."""
    drawn = sums[rng.integers(len(sums), size=(_DRAWS, len(sums)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    total = sums.sum(axis=0)
    return {"value": float(total[0] / total[1]), "low": float(low), "high": float(high)}


if __name__ == "__main__":
    main()
