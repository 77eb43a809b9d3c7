"""A judge reads what no rule can; what it has read is stored and told."""

import dataclasses
import json

import pytest

from eval.backends.client import Client
from eval.config import JudgeConfig
from eval.run import run
from eval.score import ScoreConfig, main, score
from tests.eval.conftest import write_rows
from tests.eval.openai_server import FakeServer
from tests.eval.vision.asked import answers, config_of


def judge_of(url):
    return JudgeConfig(url=url, model="fake", connections=2)


def stored(data, *responses):
    rows = [{"id": f"validation_Art_{number}", "response": text} for number, text in enumerate(responses, start=1)]
    return str(write_rows(data / "answers.jsonl", rows))


def scoring(data, *responses, **settings):
    settings = {"protocol": "card", "data_dir": str(data / "data")} | settings
    return ScoreConfig("mmmu", stored(data, *responses), **settings)


class Judge(FakeServer):
    """Answers each question about a response by the table."""

    def write(self, prompt, body):
        return self.answers[prompt.rpartition("\n")[2]], "stop"


def test_a_judge_reads_what_no_rule_can_and_is_told(data, capsys):
    fake = Judge(answers={"The crimson one": "<think>B?</think>A", "None of both": "I think: Z"})
    path = stored(data, "The crimson one", "The answer is (B).")
    out = data / "scored"
    arguments = ["--task", "mmmu", "--protocol", "card", "--responses", path, "--data-dir", str(data / "data")]
    with fake.serve() as url:
        main([*arguments, "--out", str(out), "--judge.url", url, "--judge.model", "fake"])
    (body,) = fake.bodies
    assert body["temperature"] == 0 and "A. red\nB. blue" in body["messages"][0]["content"]
    results = json.loads((out / "results.json").read_text())
    told = results["tasks"]["mmmu"]
    assert told["metrics"]["accuracy"]["value"] == 0.5 and told["judge"]["without"]["value"] == 0.0
    assert (told["judge"]["asked"], told["judge"]["read"], told["judge"]["share"]) == ({"fake": 1}, 1, 0.5)
    assert results["judge"] == {"url": url, "model": "fake"}
    first, second = [json.loads(line) for line in (out / "samples" / "mmmu.jsonl").read_text().splitlines()]
    assert (first["judge"], first["extraction"], first["correct"], first["outcome"]) == ("fake", "A", True, "ok")
    assert "judge" not in second
    page = (out / "report.html").read_text()
    words = "of 1 of 2 responses (50.00 %) the answer was read by fake in place of a rule"
    assert words in " ".join(page.split()) and "judge read 50.00 %" in page
    assert words in " ".join(capsys.readouterr().out.split())


def test_without_a_judge_nothing_is_said_of_one(data):
    told = score(scoring(data, "hm", "A"))
    assert "judge" not in told and "judge" not in told["tasks"]["mmmu"]
    assert told["tasks"]["mmmu"]["outcomes"]["unparsed"] == 1


def test_what_the_judge_cannot_read_stays_unparsed(data):
    fake = Judge(answers={"hm": "I can not tell", "so": "Z"})
    with fake.serve() as url:
        config = ScoreConfig(
            "mmmu", stored(data, "hm", "so"), protocol="card", data_dir=str(data / "data"), judge=judge_of(url)
        )
        told = score(config)["tasks"]["mmmu"]
    assert told["outcomes"]["unparsed"] == 1 and told["judge"]["asked"] == {"fake": 2} and told["judge"]["read"] == 1


def test_a_judge_that_answers_nothing_is_an_error(data):
    fake = Judge(answers={}, rejects=["temperature"])
    with fake.serve() as url:
        config = ScoreConfig(
            "mmmu", stored(data, "hm", "A"), protocol="card", data_dir=str(data / "data"), judge=judge_of(url)
        )
        with pytest.raises(ValueError, match=r"the judge fake at http.* answers nothing: HTTP 400"):
            score(config)
    with pytest.raises(ValueError, match=r"give --judge\.model too"):
        JudgeConfig(url="http://localhost:1/v1")
    with pytest.raises(ValueError, match=r"--judge\.url ftp://x: give an address"):
        score(dataclasses.replace(config, judge=judge_of("ftp://x")))


def test_a_run_asks_the_judge_once_and_its_samples_keep_what_it_read(data):
    fake, judge = FakeServer(answers=answers("the crimson one", "A")), Judge(answers={"the crimson one": "A"})
    with fake.serve() as url, judge.serve() as judge_url:
        config = config_of(data, url, judge=judge_of(judge_url))
        assert run(config)["tasks"]["mmmu"]["metrics"]["accuracy"]["value"] == 1
        again = run(config)
        assert again["tasks"]["mmmu"]["judge"]["read"] == 1 and len(judge.bodies) == 1
        with pytest.raises(ValueError, match="was made with other settings"):
            run(config_of(data, url))
    path = str(data / "out" / "samples" / "mmmu.jsonl")
    rescored = score(ScoreConfig("mmmu", path, protocol="card", data_dir=str(data / "data")))["tasks"]["mmmu"]
    assert rescored["metrics"]["accuracy"]["value"] == 1 and rescored["judge"]["asked"] == {"fake": 1}


def test_what_a_judge_has_read_is_not_asked_again_after_a_break(data, monkeypatch):
    fake = FakeServer(answers=answers("the crimson one", "the azure one"))
    judge = Judge(answers={"the crimson one": "A", "the azure one": "B"})

    class BrokenOff(Client):
        def ask_all(self, requests, on_answer):
            super().ask_all(requests[:1], on_answer)
            raise KeyboardInterrupt

    with fake.serve() as url, judge.serve() as judge_url:
        config = config_of(data, url, judge=judge_of(judge_url))
        with monkeypatch.context() as patch:
            patch.setattr("eval.judge.Client", BrokenOff)
            with pytest.raises(KeyboardInterrupt):
                run(config)
        told = run(config)["tasks"]["mmmu"]
    assert told["judge"]["read"] == 2 and len(judge.bodies) == 2
    assert len((data / "out" / "samples" / "mmmu.jsonl").read_text().splitlines()) == 2
