"""The figures of a task, and the table of a terminal."""

import dataclasses
import time

import numpy as np
import pytest

from eval.stats import wilson
from eval.summary import summarize, table
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.presets import CARD_EVAL_SAMPLING


def sample(number, right, *, outcome="ok", **others):
    """Returns a light sample of a metric ``accuracy``."""
    return {
        "id": number, "group": None, "repeat": 0, "correct": bool(right), "outcome": outcome, "finish_reason": "stop",
        "metrics": {"accuracy": [float(right)]}, "multiple_closes": 0, "closed_by_budget": False, "num_tokens": None,
    } | others  # fmt: skip


# Under a protocol that scores what stands after the thought, a cut response may be right.
CUT_RIGHT = [
    sample(0, 1), sample(1, 0), sample(2, 1, outcome="truncated"), sample(3, 0, outcome="loop"),
    sample(4, 0, outcome="error"), sample(5, 1),
]  # fmt: skip


def test_cut_responses_are_told_apart():
    summary = summarize(CUT_RIGHT, headline="accuracy")
    assert summary["metrics"]["accuracy"]["value"] == 3 / 6
    assert summary["cut_as_wrong"]["accuracy"]["value"] == 2 / 6
    finished = summary["finished"]["accuracy"]
    assert (finished["value"], finished["n"]) == (2 / 3, 3)
    assert (finished["low"], finished["high"]) == wilson(2, 3)
    cut = summary["cut"]
    assert (cut["count"], cut["value"], cut["unknown"]) == (2, 2 / 6, 0)
    assert (cut["low"], cut["high"]) == wilson(2, 6)
    assert summary["outcomes"] == {"ok": 3, "unparsed": 0, "truncated": 1, "loop": 1, "empty": 0, "error": 1}
    assert not {"groups", "macro", "clustered", "pass_at", "lengths", "curve", "thinking_curve"} & summary.keys()


def test_all_responses_cut_leave_nothing_finished():
    summary = summarize([sample(0, 0, outcome="truncated")], headline="accuracy")
    assert summary["finished"] == {} and summary["cut"]["value"] == 1


def test_several_closes_and_closes_by_budget_are_counted():
    samples = [sample(0, 1, multiple_closes=3), sample(1, 1, closed_by_budget=True), sample(2, 1)]
    summary = summarize(samples, headline="accuracy")
    assert (summary["multiple_closes"], summary["closed_by_budget"]) == (1, 1)


def test_groups_are_told_and_their_mean_counts_each_the_same():
    samples = [sample(n, n < 9, group="a") for n in range(10)] + [sample(10, 0, group="b"), sample(11, 1, group="b")]
    summary = summarize(samples, headline="accuracy", macro=True)
    assert {name: (each["value"], each["n"]) for name, each in summary["groups"].items()} == {
        "a": (0.9, 10), "b": (0.5, 2),
    }  # fmt: skip
    assert summary["macro"]["value"] == pytest.approx(0.7)
    assert (summary["macro"]["n"], summary["macro"]["groups"]) == (12, 2)
    assert summary["clustered"]["value"] == pytest.approx(10 / 12)
    assert "macro" not in summarize(samples, headline="accuracy")


def test_a_hard_subject_widens_the_clustered_interval_alone():
    rng = np.random.default_rng(0)
    samples = [sample(n, rng.random() < (0.2 if n % 8 == 0 else 0.8), group=str(n % 8)) for n in range(800)]
    summary = summarize(samples, headline="accuracy")
    accuracy, clustered = summary["metrics"]["accuracy"], summary["clustered"]
    assert clustered["value"] == pytest.approx(accuracy["value"])
    assert clustered["high"] - clustered["low"] > 3 * (accuracy["high"] - accuracy["low"])
    assert (accuracy["low"], accuracy["high"]) == wilson(round(800 * accuracy["value"]), 800)


def test_pass_at_k_begins_with_the_score():
    answers = [[1, 0, 0], [0, 0, 0], [1, 1, 1]]
    samples = [sample(n, right, repeat=place) for n, own in enumerate(answers) for place, right in enumerate(own)]
    summary = summarize(samples, headline="accuracy")
    assert (summary["n"], summary["samples"]) == (3, 9)
    assert {k: each["value"] for k, each in summary["pass_at"].items()} == pytest.approx(
        {"1": 4 / 9, "2": (2 / 3 + 0 + 1) / 3, "3": 2 / 3}
    )
    for name in ("value", "low", "high"):
        assert summary["pass_at"]["1"][name] == pytest.approx(summary["metrics"]["accuracy"][name])


def test_metrics_that_leave_a_document_out_have_fewer_documents():
    samples = [sample(0, 1), sample(1, 0) | {"metrics": {"accuracy": [0.0], "ok_only": [0.0]}}]
    metrics = summarize(samples, headline="accuracy")["metrics"]
    assert (metrics["accuracy"]["n"], metrics["ok_only"]["n"]) == (2, 1)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="no samples to summarize"):
        summarize([], headline="accuracy")
    with pytest.raises(ValueError, match=r"headline metric 'f1'; the metrics are \['accuracy'\]"):
        summarize([sample(0, 1)], headline="f1")


def test_tens_of_thousands_of_samples_take_seconds():
    rng = np.random.default_rng(1)
    samples = [
        sample(n // 2, rng.random() < 0.4, repeat=n % 2, group=f"g{n // 2 % 72}", num_tokens=int(length))
        for n, length in enumerate(rng.lognormal(8, 1, 2 * 26_529))
    ]
    started = time.process_time()
    summary = summarize(samples, headline="accuracy", macro=True, max_new_tokens=32_768)
    # About 2 seconds; one pass over documents for each draw would take minutes.
    assert time.process_time() - started < 20
    assert summary["n"] == 26_529 and len(summary["curve"]) < 40


def results(summary, **others):
    return {"protocol": "card", "mode": "thinking", "style": "chat", "tasks": {"mmlu_pro": summary}} | others


SETTINGS = {
    "sampling": dataclasses.asdict(SamplingParams(**CARD_EVAL_SAMPLING._asdict())),
    "max_new_tokens": 32_768,
    "cut_is_wrong": False,
}


def test_every_row_of_the_table_carries_all_that_belongs_to_a_number():
    samples = [each | {"group": str(each["id"] % 2)} for each in CUT_RIGHT]
    lines = table(results(summarize(samples, headline="accuracy", macro=True) | SETTINGS)).splitlines()
    assert " ".join(lines[0].split()) == "task metric value 95 % interval n cut protocol mode sampling budget"
    numbers = [line for line in lines[1:] if line.startswith("mmlu_pro ")]
    named = [line[10:30].strip() for line in numbers]
    assert named == ["accuracy", "cut as wrong", "finished only", "mean of 2 groups", "clustered by group"]
    for line in numbers:
        assert line.split()[-6:] == ["33.33", "%", "card", "thinking", "card_eval", "32,768"]
        assert "[" in line and line.split("]")[1].split()[0] in ("6", "3")
    assert lines[-1] == "mmlu_pro: 6 samples of 6 documents; ok 3, truncated 1, loop 1, error 1"


def test_the_table_fits_120_columns_with_the_longest_names():
    samples = [
        sample(f"{n}", n % 2, repeat=place, group=str(n), outcome="truncated" if n == 0 else "ok")
        | {"metrics": {"instruction_strict": [float(n % 2)]}}
        for n in range(100)
        for place in range(4)
    ]
    sampling = dataclasses.asdict(SamplingParams(temperature=0.65, top_p=0.95, top_k=20, presence_penalty=1.25))
    summary = summarize(samples, headline="instruction_strict", macro=True) | SETTINGS | {"sampling": sampling}
    summary |= {
        "card": {"size": "2B", "published": 0.665, "difference": -0.1, "note": "missed, and far " * 20},
        "n": 26_529,
    }
    for mode, style in [("thinking", "chat"), ("non_thinking", "chat"), ("non_thinking", "likelihood")]:
        told = results(
            summary, mode=mode, style=style, protocol="official", labels=["the server does not follow top_k"]
        )
        lines = table(told | {"tasks": {"gpqa_diamond": summary}}).splitlines()
        assert max(map(len, lines)) <= 120
        assert "the server does not follow top_k" in lines
        assert any(
            line.startswith("gpqa_diamond: -10.00 from the 66.5 of 2B's card: missed, and far") for line in lines
        )


def test_what_nobody_recorded_is_unknown():
    summary = summarize([sample(0, 1, finish_reason=None), sample(1, 0, finish_reason=None)], headline="accuracy")
    row = table({"protocol": "official", "tasks": {"qa": summary}}).splitlines()[1]
    assert row.split()[-5:] == ["unknown", "official", "unknown", "unknown", "unknown"]


@pytest.mark.parametrize(
    ("sampling", "mode", "name"),
    [
        ({}, "thinking", "greedy"),
        (CARD_EVAL_SAMPLING._asdict(), "non_thinking", "card_eval"),
        ({"temperature": 1.0, "top_k": 20, "presence_penalty": 2.0}, "non_thinking", "card_recommended"),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5}, "non_thinking", "card_recommended"),
        (CARD_EVAL_SAMPLING._asdict() | {"min_p": 0.1}, "thinking", "T1 p0.95 k20 pp1.5"),
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 20}, "thinking", "T0.6 p0.95 k20 pp0"),
    ],
)
def test_samplings_have_names(sampling, mode, name):
    summary = summarize([sample(0, 1)], headline="accuracy") | SETTINGS
    summary |= {"sampling": dataclasses.asdict(SamplingParams(**sampling))}
    assert f" {name}  " in table(results(summary, mode=mode))


@pytest.mark.parametrize("detect_loops", [True, False])
def test_the_table_says_whether_loops_were_ended(detect_loops):
    summary = summarize([sample(0, 1)], headline="accuracy") | SETTINGS
    summary |= {"sampling": dataclasses.asdict(SamplingParams(detect_loops=detect_loops))}
    assert ("responses that repeated themselves were ended" in table(results(summary))) == detect_loops


def test_budgets_of_thinking_and_other_numbers_stand_in_the_table():
    summary = summarize([sample(0, 1)], headline="accuracy") | SETTINGS
    summary["metrics"]["words"] = {"value": 1234.5, "low": -1.0, "high": 3000.0, "n": 1}
    summary["metrics"]["mtp_acceptance"] = {"value": 0.75, "low": 0.7, "high": 0.8, "accepted": 3, "proposed": 4}
    told = table(results(summary, thinking_budget=512))
    assert "thinking<=512" in told and "1234" in told and "[-1, 3000]" in told and "75.00" in told
