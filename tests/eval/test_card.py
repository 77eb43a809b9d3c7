"""How a result stands to the model card's figure."""

import dataclasses
from pathlib import Path

import pytest

from eval.card import PUBLISHED, against_card, check_published, size_of
from eval.config import EvalConfig, sampling_of
from eval.origin import describe
from eval.protocols import Protocol
from eval.stats import wilson
from qwen35_jax.config import ModelConfig
from qwen35_jax.hf.source import ModelSource
from qwen35_jax.presets import PRESETS
from tests.conftest import shared_dir

CARD = EvalConfig(mode="thinking", protocol="card")


def summary_of(right, n, cut=0, unknown=0):
    low, high = wilson(right, n)
    metric = {"value": right / n, "low": low, "high": high, "n": n}
    return {
        "n": n, "headline": "accuracy", "metrics": {"accuracy": metric},
        "cut": {"count": cut, "value": cut / n, "unknown": unknown},
        "finished": {"accuracy": {"value": right / max(1, n - cut)}},
    }  # fmt: skip


def verdict(config=CARD, *, task="mmlu_pro", right=8_000, n=12_032, cut=0, size="2b", labels=(), budget=32_768):
    """Returns how a score of ``right`` of ``n`` stands to the card."""
    summary = summary_of(right, n, cut) | {
        "max_new_tokens": budget,
        "sampling": dataclasses.asdict(sampling_of(config, Protocol("s"), lambda: PRESETS[size])),
    }  # fmt: skip
    results = describe(config, Path("absent"), None, ()) | {"labels": list(labels)}
    return against_card(summary, task, results, size, config.mode)


def stored_verdict(summary):
    return against_card(summary, "mmlu_pro", {"protocol": "official"}, "2b", "thinking")


def test_the_figures_of_2b_are_those_of_its_card():
    assert PUBLISHED["2b", "thinking"] | {"gpqa_diamond": None} == {
        "mmlu_pro": 66.5, "mmlu_redux": 79.6, "ceval": 73.2, "supergpqa": 37.5, "ifeval": 78.6, "gpqa_diamond": None,
        "mmmu": 64.2, "mathvista": 76.7, "realworldqa": 74.5, "mmbench": 83.3, "ocrbench": 84.5, "refcoco": 84.8,
        "videomme": 75.6, "videomme_no_subtitles": 69.0,
    }  # fmt: skip
    assert PUBLISHED["2b", "non_thinking"] == {
        "mmlu_pro": 55.3, "mmlu_redux": 69.2, "ceval": 65.2, "supergpqa": 30.4, "ifeval": 61.2,
        "mmmu": 64.2, "mathvista": 73.9, "realworldqa": 71.2, "mmbench": 81.3, "ocrbench": 85.4, "refcoco": 84.3,
    }  # fmt: skip


def test_sizes_are_recognised_by_their_shape():
    assert [size_of(model) for name, model in PRESETS.items() if name != "tiny"] == [*PRESETS][1:]
    assert size_of(PRESETS["tiny"]) is None


def test_published_configurations_are_recognised():
    shared = shared_dir()
    if shared is None:
        pytest.skip("the shared folder is absent")
    for path in sorted((shared / "qwen35" / "configs").glob("config_*.json")):
        assert size_of(ModelConfig.from_hf(path)) == path.stem.removeprefix("config_").lower()


def test_a_figure_inside_the_interval_is_met():
    told = verdict(right=round(0.663 * 12_032))
    assert told["published"] == 0.665 and told["difference"] == pytest.approx(-0.002, abs=1e-4)
    assert told["inside"] is True and told["met"] is True and told["not_comparable"] == []
    assert "inside the interval" in told["note"] and "does not say its prompt; this is protocol card" in told["note"]


def test_two_points_are_near_enough_on_many_documents_alone():
    many = verdict(right=round(0.65 * 12_032))
    assert (many["inside"], many["met"]) == (False, True) and "within 2 points on 12,032" in many["note"]
    few = verdict(right=round(0.65 * 5_000), n=5_000)
    assert (few["inside"], few["met"]) == (False, False) and "missed" in few["note"]
    assert verdict(right=round(0.64 * 12_032))["met"] is False


def test_a_missed_figure_is_told_with_the_cut_rate():
    told = verdict(right=6_000, cut=3_000)
    assert told["met"] is False
    assert (
        "missed, with 24.93 % of the responses cut off, and those that ended by themselves score 66.43 %"
        in told["note"]
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"thinking_budget": 4_096}, "thinking budget of 4,096 tokens"),
        ({"limit": 1_000}, "only the first 1,000 documents"),
        ({"sampling": "greedy"}, "another sampling than the card's"),
        ({"mode": "non_thinking", "style": "text", "sampling": "card_eval"}, "style text; the card's models chat"),
        ({"detect_loops": True}, "responses that repeat themselves are ended early"),
        ({"model": ModelSource(path="m", adapter="a")}, "an adapter is applied"),
    ],
)
def test_what_was_made_in_another_way_is_not_judged(changes, reason):
    told = verdict(dataclasses.replace(CARD, **changes), right=12_000)
    assert told["not_comparable"] == [reason]
    assert told["inside"] is None and told["met"] is None
    assert f"not comparable ({reason})" in told["note"] and "missed" not in told["note"]
    assert told["difference"] is not None


def test_a_shorter_budget_matters_only_if_it_cut_something():
    assert verdict(budget=8_192)["not_comparable"] == []
    reasons = verdict(budget=8_192, cut=1_203)["not_comparable"]
    assert reasons == ["10.00 % of the responses were cut off at 8,192 tokens, where the card allows 32,768"]


def test_a_backend_that_ignores_a_setting_is_not_judged():
    assert verdict(labels=("the server does not follow top_k",))["not_comparable"] == [
        "the server does not follow top_k"
    ]


def test_the_recommended_sampling_is_the_cards_too_and_is_named():
    config = EvalConfig(mode="non_thinking", protocol="card", sampling="card_recommended")
    told = verdict(config, right=round(0.553 * 12_032))
    assert told["met"] is True and "sampled as the card recommends" in told["note"]
    assert "sampled as" not in verdict(dataclasses.replace(config, sampling="card_eval"))["note"]


def test_what_the_card_leaves_open_is_said():
    assert "which split it scores" in verdict(task="ceval")["note"]


@pytest.mark.parametrize(
    ("task", "size", "mode"),
    [("gsm8k", "2b", "thinking"), ("ifeval", "tiny", "thinking"), ("mmlu_pro", "4b", "non_thinking")],
)
def test_no_figure_no_verdict(task, size, mode):
    assert verdict(dataclasses.replace(CARD, mode=mode), task=task, size=size) is None


def test_stored_responses_are_judged_with_what_is_not_known():
    told = stored_verdict(summary_of(8_000, 12_032))
    assert (told["size"], told["published"], told["inside"], told["met"]) == ("2B", 0.665, True, True)
    assert told["note"].startswith("inside the interval. The card does not say its prompt; this is protocol official")
    assert "How the responses were sampled, and how long they might be, is not recorded" in told["note"]
    told = stored_verdict(summary_of(8_000, 12_000) | {"missing": 32})
    assert (told["verdict"], told["met"]) == ("not comparable (32 documents have no response)", None)


def test_a_figure_is_not_missed_without_cuts_where_nobody_recorded_them():
    told = stored_verdict(summary_of(6_000, 12_032, unknown=12_032))
    assert told["verdict"] == "missed, and of 12,032 responses it is not recorded whether they were cut off"


@pytest.mark.parametrize(
    ("task", "mode", "remedy"),
    [
        (
            "mmlu_pro",
            "non_thinking",
            "those of 0.8b in mode thinking, 2b in mode thinking, 2b in mode non_thinking, 4b",
        ),
        ("gsm8k", "thinking", "is published; leave it out"),
    ],
)
def test_a_size_without_a_figure_is_refused(task, mode, remedy):
    with pytest.raises(ValueError, match=remedy):
        check_published(task, "4b", mode)


def test_a_servers_model_has_no_card():
    assert against_card({}, "mmlu_pro", {}, None, "thinking") is None
