"""The distillation experiment: its task has the distribution that it says, its figures are right, and it runs."""

import collections
import dataclasses
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from examples.distillation import arms, measure, report, run, task
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.processing.tokenizer import Tokenizer

REPO = Path(__file__).resolve().parents[2]
PROBLEM = task.questions(held_out=True)[0]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [*task.example_texts(), *["user\n", "assistant\n", "\n\n"] * 100]
    return Tokenizer.from_pretrained(build_tiny_tokenizer(texts, tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module", params=task.KINDS)
def exam(tokenizer, request):
    return measure.Exam.draw(tokenizer, 50, seed=3, kind=request.param)


@pytest.mark.parametrize("kind", task.KINDS)
def test_the_true_probabilities_sum_to_one(kind):
    problems = task.questions(kind, held_out=False)[:200]
    for problem, answer in zip(problems, task.draw_answers(problems, seed=0), strict=True):
        assert len(answer) == task.LINE * len(problem.turns)
        for word, found in zip(answer, task.conditionals(problem, answer), strict=True):
            assert math.isclose(sum(found.values()), 1)
            assert min(found.values()) > 0
            assert word in found


def test_answers_are_drawn_with_the_known_probabilities():
    draws = collections.Counter(tuple(each[:5]) for each in task.draw_answers([PROBLEM] * 20_000, seed=1))
    expected = {
        line: 20_000 * math.prod(task.next_words(PROBLEM, line[:place])[line[place]] for place in range(5))
        for line in draws
    }
    often = [line for line, count in expected.items() if count >= 5]
    assert len(often) > 50
    # What is rare, or was never drawn, is one cell.
    observed = [*(draws[line] for line in often), 20_000 - sum(draws[line] for line in often)]
    wanted = [*(expected[line] for line in often), 20_000 - sum(expected[line] for line in often)]
    assert scipy.stats.chisquare(observed, wanted).pvalue > 0.001


def test_lines_are_wrong_as_often_as_said_and_go_on_from_what_is_written():
    problems = task.questions(held_out=False)[:3000]
    wrong = lines = 0
    for problem, answer in zip(problems, task.draw_answers(problems, seed=2), strict=True):
        shown = task.NUMBERS[problem.start]
        for turn, line in zip(problem.turns, task.text_of(answer).split("\n"), strict=True):
            first, _, second, _, result = line.split()
            assert sorted((first, second)) == sorted((shown, task.NUMBERS[turn]))
            total = (task.NUMBERS.index(first) + task.NUMBERS.index(second)) % len(task.NUMBERS)
            wrong, lines, shown = wrong + (result != task.NUMBERS[total]), lines + 1, result
    low, high = scipy.stats.binom.interval(0.999, lines, task.WRONG)
    assert low <= wrong <= high


def test_no_line_of_a_long_answer_is_wrong_but_those_of_the_base_are():
    problems = task.questions("long", held_out=False)[:300]
    answers = [task.text_of(answer) for answer in task.draw_answers(problems, seed=2)]
    assert all(problem.is_right(answer) for problem, answer in zip(problems, answers, strict=True))
    assert {answer.count("\n") + 1 for answer in answers} == {5, 6}
    rough = [task.text_of(answer) for answer in task.draw_answers(problems, seed=2, rough=True)]
    right = sum(problem.is_right(answer) for problem, answer in zip(problems, rough, strict=True))
    # A wrong line moves the total by any of six amounts, so that wrong lines may add up to a right one.
    keeps = 1 - task.WRONG * 7 / 6
    shares = [1 / 7 + 6 / 7 * keeps ** len(problem.turns) for problem in problems]
    low, high = scipy.stats.binom.interval(0.999, len(rough), np.mean(shares))
    assert low <= right <= high


def test_an_answer_is_right_by_its_last_word():
    for problem in random.Random(0).sample(task.questions(held_out=True), 50):
        assert problem.is_right(f"one plus one makes {problem.total}")
        assert not problem.is_right(f"one plus {problem.total} makes")
        assert not problem.is_right("")


def test_the_example_of_the_docstring_is_one():
    question, first, second = re.findall(r"(?:question    |answer      | {16})(.+)", task.__doc__)
    (problem,) = [each for held in (False, True) for each in task.questions(held_out=held) if each.question == question]
    words = [word for line in (first, second) for word in line.split()]
    answer = [word if place % 5 == 0 else f" {word}" for place, word in enumerate(words)]
    written = [*answer[:5], "\n", *answer[5:]]
    assert all(word in task.next_words(problem, written[:place]) for place, word in enumerate(written))


@pytest.mark.parametrize("kind", task.KINDS)
def test_no_held_out_question_is_trained(kind):
    held_out, trained = (set(task.questions(kind, held_out=held)) for held in (True, False))
    assert not held_out & trained
    assert len(held_out) >= 1000


def test_the_words_measured_are_the_tokens_trained(exam):
    for problem, prompt, row in zip(exam.problems, exam.prompts, exam.rows, strict=True):
        assert len(prompt) <= exam.kind.max_prompt_tokens and len(row) <= exam.kind.max_new_tokens
        answer = exam.tokenizer.decode(row)
        turns = [("user", problem.question), ("assistant", answer)]
        messages = [{"role": role, "content": content} for role, content in turns]
        text = exam.tokenizer.chat_template.render(messages)
        assert exam.tokenizer.encode(text)[: len(prompt) + len(row)] == [*prompt, *row]


def test_a_model_that_is_the_truth_reaches_the_floor(exam):
    size = len(exam.tokenizer)
    model = []
    for places in exam.truth:
        log_probs = np.full((len(places), size), -50.0)
        for each, place in zip(log_probs, places, strict=True):
            each[place.ids] = np.log(place.probabilities)
        model.append(log_probs)
    sums = sum(measure.cross_entropy(places, own) for places, own in zip(exam.truth, model, strict=True))
    assert math.isclose(sums / sum(map(len, exam.rows)), measure.floor(exam)["nll"])
    assert measure.kl(model[0], model[0]) == 0
    # Two places, two tokens: KL((1/2, 1/2), (1/4, 3/4)) = log(4/3) / 2.
    half, quarter = np.log([[0.5, 0.5]] * 2), np.log([[0.25, 0.75]] * 2)
    assert math.isclose(measure.kl(half, quarter), math.log(4 / 3))


def seed_of(nll):
    return {arm: {name: {"value": nll[arm], "low": 0.0, "high": 1.0} for name in report.COLUMNS} for arm in arms.SHORT}


def test_an_interval_over_seeds_is_students():
    seeds = [seed_of(dict.fromkeys(arms.SHORT, value)) for value in (1.0, 2.0, 3.0)]
    found = report.combine(seeds)["live"]["nll"]
    half = scipy.stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert found == pytest.approx({"value": 2.0, "low": 2 - half, "high": 2 + half}, abs=1e-3)


def test_a_claim_holds_if_the_intervals_are_apart():
    def told(labels, live):
        seeds = [
            seed_of(dict.fromkeys(arms.SHORT, 0.0) | {"labels": labels + x, "live": live + x}) for x in (-0.1, 0, 0.1)
        ]
        return report.claims(report.combine(seeds), seeds)["live, forward KL beats labels on NLL of truth"]

    assert told(2.0, 1.0)["holds"]
    near = told(1.1, 1.0)
    assert not near["holds"]
    # The seeds move both alike, so that the difference within a seed is clear.
    assert near["gap_low"] == pytest.approx(0.1)


def test_the_long_kind_compares_its_two_arms_of_equal_steps():
    place = arms.Place(Path("work"), 0, steps=7, rate=1e-3, kind="long")
    stages = {arm: [list(map(str, command)) for _, command in arms.commands(place, arm)] for arm in arms.LONG}
    assert [command[0] for command in stages["stored"]] == ["train.teach", "train.distill"]
    (twice,), (own,) = stages["stored_twice"], stages["own"]
    assert twice[twice.index("--steps") + 1] == "14" and own[own.index("--steps") + 1] == "7"
    assert own[own.index("--model.path") + 1] == str(place.student("stored"))
    figures = {arm: {name: {"value": value, "low": 0.0, "high": 1.0} for name in report.COLUMNS} for arm, value in
               {"stored": 0.3, "stored_twice": 0.2, "own": 0.1}.items()}  # fmt: skip
    seeds = [figures] * 3
    claims = report.claims(report.combine(seeds), seeds)
    assert len(claims) == 3 and all(claim["holds"] for claim in claims.values())


def test_an_experiment_with_other_settings_is_refused(tmp_path):
    settings = run.Settings(workdir=tmp_path / "work", seeds=1, num_teacher=20, num_student=10)
    run.prepare(settings)
    rows = [(settings.workdir / f"{name}.jsonl").read_text().splitlines() for name in ("teacher", "shuffled")]
    told, shuffled = ([json.loads(row)["messages"] for row in each] for each in rows)
    assert [question for question, _ in told] == [question for question, _ in shuffled]
    assert sorted(answer["content"] for _, answer in told) == sorted(answer["content"] for _, answer in shuffled)
    assert sum(one != other for one, other in zip(told, shuffled, strict=True)) > 10
    run.prepare(settings)
    with pytest.raises(ValueError, match="other settings"):
        run.prepare(dataclasses.replace(settings, steps=3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", task.KINDS)
def test_the_whole_of_it_with_a_few_steps(tmp_path, kind):
    work = tmp_path / "work"
    command = [sys.executable, "-m", "examples.distillation.run", "--workdir", str(work), "--seeds", "1"]
    command += ["--kind", kind]
    command += ["--steps", "4", "--rates", "1e-3", "--num-student", "40", "--num-teacher", "60"]
    command += ["--base-steps", "4", "--teacher-steps", "4", "--shuffled-steps", "4", "--questions", "6"]
    result = subprocess.run(
        command, cwd=REPO, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=1800
    )
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((work / run.RESULTS).read_text())
    assert set(results["arms"]) == {*arms.ARMS[kind], "teacher"}
    for figures in results["arms"].values():
        assert figures["nll"]["value"] > results["floor"]["nll"]
        assert figures["kl_own"]["value"] >= 0
    assert results["arms"]["teacher"]["kl_teacher"]["value"] == 0
    if kind == "short":
        assert results["costs"]["live"]["teacher_tokens"] == 4 * 768
    own, name = ("on_policy", "on-policy from stored") if kind == "short" else ("own", "stored top k, then on-policy")
    assert results["costs"][own]["teacher_tokens"] > 0 and name in result.stdout
    # What has run does not run again.
    again = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0
    assert "python -m train" not in again.stdout
