"""Comparisons of evaluation directories that real runs wrote, and what the command refuses."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from eval.compare import compare, main, table
from eval.config import EvalConfig
from eval.paired import mcnemar
from eval.run import run
from eval.score import main as score
from eval.stats import wilson
from tests.eval.conftest import FakeEngine, write_rows

N = 60
QUESTIONS = [f"{n}+0?" for n in range(N)]


def right(n, wrong=()):
    """Returns answers to all questions, right but for some."""
    return {question: "x" if place in wrong else str(place) for place, question in enumerate(QUESTIONS[:n])}


class Chance(FakeEngine):
    """Answers question ``n`` right with its own chance, by the seed of each request."""

    def __init__(self, gain=0.0):
        super().__init__({})
        self.gain = gain

    def generate(self, prompts, *, sampling, max_new_tokens, seed=0, on_finish=None):
        questions = [self.tokenizer.decode(prompt).partition("<think>")[0] for prompt in prompts]
        for prompt, question, own, place in zip(prompts, questions, seed, range(len(prompts)), strict=True):
            number = int(question.partition("+")[0])
            won = np.random.default_rng(own).random() < min(1, number / N + self.gain)
            engine = FakeEngine({question: str(number) if won else "x"})
            engine.generate([prompt], sampling=sampling, max_new_tokens=max_new_tokens,
                            on_finish=lambda _, reply, place=place: on_finish(place, reply))  # fmt: skip


@pytest.fixture
def evaluate(tmp_path):
    """Runs an evaluation of ``qa`` and returns its directory."""
    rows = [{"question": question, "answer": str(place)} for place, question in enumerate(QUESTIONS)]
    write_rows(tmp_path / "data" / "qa" / "test.jsonl", rows)

    def call(name, engine, **changes):
        config = EvalConfig(tasks=("qa",), data_dir=str(tmp_path / "data"), out=str(tmp_path / name))
        run(dataclasses.replace(config, **changes), engine)
        return str(tmp_path / name)

    return call


@pytest.fixture
def pair(evaluate):
    a = evaluate("a", FakeEngine(right(N, wrong=range(20))))
    b = evaluate("b", FakeEngine(right(N, wrong=[*range(12), 58, 59])))
    return a, b


def test_two_runs_are_compared_document_by_document(pair):
    told = compare(*pair)["tasks"]["qa"]
    metric = told["metrics"]["accuracy"]
    assert (metric["a"]["value"], metric["b"]["value"], metric["n"]) == (40 / 60, 46 / 60, 60)
    assert (metric["a"]["low"], metric["a"]["high"]) == wilson(40, 60)
    difference = metric["difference"]
    assert difference["value"] == pytest.approx(6 / 60) and difference["low"] < 0.1 < difference["high"]
    # 10 of 60 documents flip; the difference of each is -1, 0 or 1.
    error = np.sqrt((10 / 60 - 0.1**2) / 60)
    assert difference["high"] - difference["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert told["flips"] == {
        "only_a": 2 / 60, "only_b": 8 / 60, "rate": pytest.approx(10 / 60),
        "right_in": {"a": ["58", "59"], "b": [str(n) for n in range(12, 20)]},
    }  # fmt: skip
    assert told["mcnemar"] == {"only_a": 2, "only_b": 8, "p": mcnemar(2, 8)}
    assert (told["n"], told["left_out"], told["cut"]) == (60, 0, {"a": 0, "b": 0})
    assert compare(*pair) == compare(*pair)


def test_the_other_way_round_the_difference_changes_its_sign(pair):
    there, back = (compare(*way)["tasks"]["qa"] for way in (pair, pair[::-1]))
    assert back["metrics"]["accuracy"]["difference"]["value"] == -there["metrics"]["accuracy"]["difference"]["value"]
    assert back["flips"]["right_in"] == {"a": there["flips"]["right_in"]["b"], "b": there["flips"]["right_in"]["a"]}
    assert back["mcnemar"]["p"] == there["mcnemar"]["p"]


def test_the_command_prints_a_table_and_writes_a_file(pair, tmp_path, capsys):
    out = tmp_path / "compared.json"
    main([*pair, "--out", str(out), "--flips", "3"])
    printed = capsys.readouterr().out
    assert json.loads(out.read_text()) == json.loads(json.dumps(compare(*pair)))
    assert max(map(len, printed.splitlines())) <= 120
    assert "qa: protocol official, mode non_thinking, sampling greedy, budget 4,096, cut 0.00 %" in printed
    assert "66.67 [54.1, 77.3]" in printed and "+10.00 [" in printed
    assert "McNemar's exact test of 2 against 8: p = 0.109" in printed
    assert "qa: B right, A wrong: 12, 13, 14 and 5 more" in printed
    assert "qa: A right, B wrong: 58, 59\n" in printed


def test_no_flips_are_named_if_none_are_wanted(pair):
    assert "A right" not in table(compare(*pair), shown=0)


def test_equal_runs_have_no_difference(pair, tmp_path):
    shutil.copytree(pair[0], tmp_path / "copy")
    told = compare(pair[0], str(tmp_path / "copy"))["tasks"]["qa"]
    assert told["metrics"]["accuracy"]["difference"] == {"value": 0, "low": 0, "high": 0}
    assert told["mcnemar"]["p"] == 1 and told["findable"] is None
    assert "too few documents flip for any difference to be found 4 times in 5" in table(
        compare(pair[0], str(tmp_path / "copy"))
    )


def test_rescored_responses_are_compared_too(pair, tmp_path):
    asked = ["--task", "qa", "--data-dir", str(tmp_path / "data")]
    for name in "ab":
        rows = [{"id": place, "response": "1" if name == "a" else "2"} for place in range(N)]
        responses = write_rows(tmp_path / f"{name}.jsonl", rows)
        score([*asked, "--responses", str(responses), "--out", str(tmp_path / f"scored_{name}")])
    told = compare(str(tmp_path / "scored_a"), str(tmp_path / "scored_b"))
    assert told["tasks"]["qa"]["mcnemar"] == {"only_a": 1, "only_b": 1, "p": 1}
    # Nobody recorded how these responses ended.
    assert told["tasks"]["qa"]["cut"] == {"a": None, "b": None}
    assert "mode unknown, sampling unknown, budget unknown, cut unknown" in table(told)
    # Rescoring changes nothing that hinders the comparison with the run itself.
    assert compare(pair[0], str(tmp_path / "scored_b"))["tasks"]["qa"]["n"] == N


def test_modes_and_sampling_may_differ_and_are_shown(pair, evaluate):
    cut = {question: (f"hm\n</think>\n\n{answer}", "length") for question, answer in right(N).items()}
    other = evaluate("thinking", FakeEngine(cut), mode="thinking", sampling="card_eval")
    told = compare(pair[0], other)
    assert told["tasks"]["qa"]["cut"] == {"a": 0, "b": 1}
    printed = table(told)
    assert "mode thinking, sampling card_eval, budget 32,768, cut 100.00 %" in printed
    assert "mode non_thinking, sampling greedy" in printed


def test_nothing_in_the_directories_changes(pair):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in _files(pair)}
    compare(*pair)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in _files(pair)} == before


def _files(pair):
    return [path for directory in pair for path in sorted(Path(directory).rglob("*")) if path.is_file()]


CARD = {"protocol": "card", "sampling": "card_eval"}


def test_noise_is_what_seeds_alone_do(evaluate):
    a, c, d = (evaluate(name, Chance(), **CARD, seed=seed) for seed, name in enumerate("acd"))
    better = evaluate("better", Chance(gain=0.6), **CARD, seed=9)
    again = evaluate("again", Chance(), **CARD, seed=10)
    noise = compare(a, better, noise=[c, d])["tasks"]["qa"]["noise"]
    # Answers are right with chances spread over 0 to 1, so that two differ with the mean of 2 p (1 - p): a third.
    assert noise["flip_rate"] == pytest.approx(1 / 3, abs=0.1)
    assert noise["spread"] == pytest.approx(np.sqrt(1 / 3 / N), rel=0.2)
    assert len(noise["differences"]) == 3 and noise["runs"] == [c, d]
    assert all(abs(each) < 3 * noise["spread"] for each in noise["differences"])
    beyond, within = (table(compare(a, other, noise=[c, d])) for other in (better, again))
    assert "B - A is beyond the" in beyond and "B - A is within the" in within
    assert "of documents flip between two seeds" in beyond


def test_repeats_are_averaged_and_not_tested_by_mcnemar(evaluate):
    a, b = (evaluate(name, Chance(), **CARD, seed=seed, repeats=4) for seed, name in enumerate("ab"))
    compared = compare(a, b)
    told = compared["tasks"]["qa"]
    assert told["n"] == N and "mcnemar" not in told
    difference = told["metrics"]["accuracy"]["difference"]
    assert difference["low"] < 0 < difference["high"]
    # Four repeats halve the noise: the mean of 2 p (1 - p) over four.
    assert difference["high"] - difference["low"] == pytest.approx(2 * 1.96 * np.sqrt(1 / 12 / N), rel=0.25)
    assert "no McNemar test" in table(compared)


def test_a_limit_is_no_hindrance_if_the_common_documents_are_asked_for(pair, evaluate, capsys):
    short = evaluate("short", FakeEngine(right(N)), limit=30)
    told = compare(pair[0], short, common=True)["tasks"]["qa"]
    assert (told["n"], told["left_out"]) == (30, 30)
    assert told["metrics"]["accuracy"]["a"]["value"] == 10 / 30
    assert told["flips"]["right_in"] == {"a": [], "b": [str(n) for n in range(20)]}
    assert "30 documents are not the same in both and are left out" in table(compare(pair[0], short, common=True))


def test_documents_with_another_right_answer_are_not_common(pair, evaluate, tmp_path):
    rows = [
        {"question": question, "answer": str(place if place > 4 else 99)} for place, question in enumerate(QUESTIONS)
    ]
    write_rows(tmp_path / "other" / "qa" / "test.jsonl", rows)
    other = evaluate("other_data", FakeEngine(right(N)), data_dir=str(tmp_path / "other"))
    assert compare(pair[0], other, common=True)["tasks"]["qa"]["left_out"] == 5


def refused(capsys, *arguments):
    """Returns the one line that the command ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(each) for each in arguments])
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and printed.count("\n") == 1
    return printed


def edit(directory, name, change):
    """Changes what a JSON file of a copy of a directory holds."""
    path = Path(directory) / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_no_finished_evaluation_is_refused(pair, tmp_path, capsys):
    a, b = pair
    assert "is not a folder; give the --out of a finished" in refused(capsys, a, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in refused(capsys, a, tmp_path / "empty")
    (tmp_path / "b" / "results.json").unlink()
    assert "holds no results.json; run eval.run or eval.score into it to its end" in refused(capsys, a, b)
    (tmp_path / "b" / "results.json").write_text("{")
    assert "cannot read" in refused(capsys, a, b)
    (tmp_path / "b" / "results.json").write_text("[]")
    assert "holds a list, expected a JSON object" in refused(capsys, a, b)
    (tmp_path / "b" / "results.json").write_text('{"tasks": {"qa": {"n": 60}}}')
    assert "does not say which documents it is about" in refused(capsys, a, b)
    assert "are the same directory" in refused(capsys, a, a + "/")
    assert "gs://bucket/a is an address" in refused(capsys, "gs://bucket/a", a)


def test_damaged_samples_are_refused(pair, tmp_path, capsys):
    a, b = pair
    path = tmp_path / "b" / "samples" / "qa.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert "holds 59 samples, results.json tells of 60" in refused(capsys, a, b)
    path.write_text("".join([lines[0], '{"id": 1}\n']))
    assert "qa.jsonl:2: not a stored sample ('metrics')" in refused(capsys, a, b)
    path.unlink()
    assert "qa.jsonl is missing" in refused(capsys, a, b)


def test_runs_that_do_not_fit_are_refused_by_name(pair, evaluate, tmp_path, capsys):
    a, b = pair
    short = evaluate("short", FakeEngine(right(N)), limit=30)
    assert "do not fit: limit is None and 30; run both alike, or give --common" in refused(capsys, a, short)
    card = evaluate("card", FakeEngine(right(N)), protocol="card")
    assert "do not fit: protocol is official and card" in refused(capsys, a, card)
    rows = [{"question": question, "answer": str(place)} for place, question in enumerate(QUESTIONS[:-1])]
    write_rows(tmp_path / "less" / "qa" / "test.jsonl", rows)
    less = evaluate("less_data", FakeEngine(right(N)), data_dir=str(tmp_path / "less"))
    assert "do not fit: the data of qa is" in refused(capsys, a, less)
    edit(b, "results.json", lambda content: content["tasks"].update(gsm8k=content["tasks"]["qa"]))
    assert "do not fit: the list of tasks is qa and gsm8k, qa" in refused(capsys, a, b)
    edit(b, "results.json", lambda content: content["tasks"].pop("qa"))
    assert "give two runs of one task" in refused(capsys, a, b, "--common")


def test_nothing_in_common_is_refused(pair, evaluate, tmp_path, capsys):
    rows = [{"id": f"other{place}", "question": question, "answer": "1"} for place, question in enumerate(QUESTIONS)]
    write_rows(tmp_path / "other" / "qa" / "test.jsonl", rows)
    other = evaluate("other_data", FakeEngine(right(N)), data_dir=str(tmp_path / "other"))
    assert "have no document of qa in common" in refused(capsys, pair[0], other, "--common")


def test_noise_of_another_model_or_of_the_same_seed_is_refused(evaluate, capsys):
    a, b = (evaluate(name, Chance(), **CARD, seed=seed) for seed, name in enumerate("ab"))
    same = evaluate("same", Chance(), **CARD)
    assert "its seed is 0, that of" in refused(capsys, a, b, "--noise", same)
    greedy = evaluate("greedy", Chance(), protocol="card", sampling="greedy", seed=3)
    assert "qa sampling is" in refused(capsys, a, b, "--noise", greedy)
    thinking = evaluate("thinking", Chance(), **CARD, mode="thinking", seed=3)
    assert "mode is thinking, in" in refused(capsys, a, b, "--noise", b, thinking)
    edit(b, "config.json", lambda content: content.update(weights="another"))
    assert "weights is another" in refused(capsys, a, a + "/../same", "--noise", b)


def test_wrong_options_are_refused(pair, tmp_path, capsys):
    assert "give a number of documents from 0" in refused(capsys, *pair, "--flips", "-1")
    assert "invalid int value: 'all'" in refused(capsys, *pair, "--flips", "all")
    assert "unrecognized arguments: --flip-rate" in refused(capsys, *pair, "--flip-rate")
    assert "required: DIR_B" in refused(capsys, pair[0])
    (tmp_path / "there.json").write_text("{}")
    for out in ("there.json", "absent/new.json"):
        assert "it exists, or its folder does not; name a new file" in refused(capsys, *pair, "--out", tmp_path / out)
