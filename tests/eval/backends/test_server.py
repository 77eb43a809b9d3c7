"""Evaluations whose responses a server writes: an imitation that can misbehave, and our own with a real engine."""

import dataclasses
import json
import socket
from pathlib import Path

import pytest

from eval.backends.base import Request
from eval.backends.client import ATTEMPTS, Client
from eval.backends.server import ServerBackend, ServerGoneError, split_answer
from eval.backends.stream import Answer
from eval.config import EvalConfig, ServerConfig
from eval.run import main, run
from eval.tasks.base import Document, user_turn
from qwen35_jax.inference.requests import seed_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.serving.app import make_app
from tests.eval.conftest import write_rows
from tests.eval.openai_server import FakeServer
from tests.inference.conftest import make_model, model, tokenizer  # noqa: F401
from tests.serving.conftest import engine, running, scripted  # noqa: F401

"""The fixtures of a real engine and of one that writes what it is told."""

PROBED = "What is 17 + 25? Answer with the number alone."
THOUGHT = "well\n</think>\n\n"
ANSWERS = {PROBED: f"{THOUGHT}42", "1+1?": f"{THOUGHT}2", "2+2?": f"{THOUGHT}5", "open?": "on and on and on"}
SAMPLING = {"temperature": 1.0, "top_k": 20, "top_p": 0.95, "presence_penalty": 1.5}
BUSY = (429, {}, {"error": {"message": "busy"}})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(Client, "first_wait", 0.001)


@pytest.fixture
def config(tmp_path):
    rows = [{"question": question, "answer": answer} for question, answer in [("1+1?", "2"), ("2+2?", "4")]]
    write_rows(tmp_path / "data" / "qa" / "test.jsonl", rows)

    def make(url, *, accept=(), name="out", **settings):
        server = ServerConfig(url=url, connections=4, accept_dropped=accept)
        settings = {"tasks": ("qa",), "sampling": "card_eval", "max_new_tokens": 40} | settings
        return EvalConfig(server=server, data_dir=str(tmp_path / "data"), out=str(tmp_path / name), **settings)

    return make


def samples_in(config):
    lines = (Path(config.out) / "samples" / "qa.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("parses_thinking", [True, False])
@pytest.mark.parametrize("mode", ["thinking", "non_thinking"])
def test_an_evaluation_of_a_server(config, parses_thinking, mode):
    fake = FakeServer(answers=ANSWERS, parses_thinking=parses_thinking)
    with fake.serve() as url:
        settings = config(url, mode=mode)
        results = run(settings)
    assert results["labels"] == []
    [writer] = results["engines"].values()
    assert writer["server"] == settings.server.url and writer["id"] == "fake"
    assert results["tasks"]["qa"]["metrics"]["accuracy"]["value"] == 0.5
    first, second = samples_in(settings)
    thinking = "well" if mode == "thinking" else None
    assert [first[name] for name in ("response", "thinking", "outcome")] == ["2", thinking, "ok"]
    assert [second[name] for name in ("response", "thinking", "correct")] == ["5", thinking, False]
    assert (first["token_ids"], first["close_positions"]) == (None, None)
    assert first["num_tokens"] == len((ANSWERS["1+1?"] if mode == "thinking" else "2").split())
    [body] = [body for body in fake.bodies if body["messages"] == [{"role": "user", "content": "1+1?"}]]
    del body["messages"], body["stream"], body["stream_options"]
    assert body == {
        "model": "fake", "max_tokens": 40, "temperature": 1.0, "top_p": 0.95, "top_k": 20, "min_p": 0.0,
        "presence_penalty": 1.5, "seed": first["seed"],
        "chat_template_kwargs": {"enable_thinking": mode == "thinking"},
    }  # fmt: skip


@pytest.mark.parametrize("setting", ["presence_penalty", "top_k", "seed", "thinking"])
def test_a_server_that_drops_a_setting_is_refused_or_labelled(config, setting):
    fake = FakeServer(answers=ANSWERS, ignores=[setting])
    with fake.serve() as url:
        with pytest.raises(ValueError, match=rf"does not follow {setting} \(.*--server.accept-dropped {setting} to"):
            run(config(url, mode="thinking", name="refused"))
        results = run(config(url, mode="thinking", accept=(setting,)))
    [label] = results["labels"]
    assert label.startswith(f"the server does not follow {setting}: ")
    # With the switch ignored the answer is where it is.
    assert results["tasks"]["qa"]["metrics"]["accuracy"]["value"] == 0.5


def test_a_field_that_is_rejected_is_left_out_by_flag(config):
    fake = FakeServer(answers=ANSWERS, rejects=["presence_penalty", "min_p"])
    with fake.serve() as url:
        with pytest.raises(ValueError, match=r"presence_penalty \(it is refused \(HTTP 400: unknown field presence_pe"):
            run(config(url, name="refused"))
        run(settings := config(url, accept=("presence_penalty",)))
    assert [sample["outcome"] for sample in samples_in(settings)] == ["ok", "ok"]


def test_greedy_tasks_need_fewer_settings(config):
    with FakeServer(answers=ANSWERS, ignores=["presence_penalty", "top_k", "seed"]).serve() as url:
        assert run(config(url, sampling="greedy"))["labels"] == []


@pytest.mark.parametrize(
    ("answer", "mode", "always_apart", "thinking", "response"),
    [
        (Answer("\n\n42", "so\n", "stop"), "thinking", False, "so", "42"),
        (Answer("", "so", "length"), "thinking", False, "so", ""),
        (Answer("so\n</think>\n\n42", "", "stop"), "thinking", False, "so", "42"),
        (Answer("so 42", "", "length"), "thinking", False, "so 42", ""),
        (Answer("so 42", "", "stop"), "thinking", False, "so 42", ""),
        (Answer("42", "", "stop"), "thinking", True, None, "42"),
        (Answer("\n\n42", "\n", "stop"), "thinking", False, "", "42"),
        (Answer("\n\n42", "\n\n", "stop"), "non_thinking", False, None, "42"),
        (Answer("42", "", "stop"), "non_thinking", False, None, "42"),
        (Answer("<think>\nso", "", "length"), "non_thinking", False, "so", ""),
        (Answer("so</think>42", "", "stop"), None, False, "so", "42"),
        (Answer("42", "", "stop"), None, False, None, "42"),
    ],
)
def test_thinking_is_told_from_the_answer(answer, mode, always_apart, thinking, response):
    split = split_answer(answer, mode, always_apart=always_apart)
    assert (split.thinking, split.answer) == (thinking, response)


@pytest.mark.parametrize("parses_thinking", [True, False])
def test_a_thought_that_is_cut_off_is_no_answer(config, parses_thinking, tmp_path):
    write_rows(tmp_path / "data" / "qa" / "test.jsonl", [{"question": "open?", "answer": "on and on"}])
    with FakeServer(answers=ANSWERS, parses_thinking=parses_thinking).serve() as url:
        run(settings := config(url, mode="thinking", max_new_tokens=3))
    [sample] = samples_in(settings)
    assert (sample["outcome"], sample["response"], sample["thinking"]) == ("truncated", "", "on and on")


def request_of(backend_config, style="chat", mode="non_thinking", text="1+1?", **sampling):
    document = Document(0, user_turn(text), score=lambda answer: None, text=text)
    return Request(document, style, mode, SamplingParams(**sampling), backend_config.max_new_tokens, seed=3)


def replies_of(backend, requests):
    replies = {}
    backend.generate(requests, replies.__setitem__)
    return [replies[place] for place in range(len(requests))]


def test_stops_end_answers_and_never_thoughts(config):
    answers = {PROBED: ANSWERS[PROBED], "q": "a STOP b</think>c STOP d"}
    fake = FakeServer(answers=answers)
    with fake.serve() as url:
        backend = ServerBackend(settings := config(url, sampling="greedy"))
        thinking, plain, text = replies_of(
            backend,
            [
                request_of(settings, mode="thinking", text="q", stop=("STOP", "d")),
                request_of(settings, text="q", stop=("STOP",)),
                request_of(settings, style="text", text="q", stop=("STOP",)),
            ],
        )
    assert (thinking.thinking, thinking.response, thinking.finish_reason) == ("a STOP b", "c ", "stop")
    # The imitation cuts the text before it parts it.
    assert (plain.response, text.response) == ("a ", "a ")


def test_requests_that_fail_are_told_and_the_others_go_on(config):
    fake = FakeServer(answers=ANSWERS)
    with fake.serve() as url:
        backend = ServerBackend(settings := config(url, sampling="greedy"))
        fake.rejects = {"stop"}
        replies = replies_of(backend, [request_of(settings), request_of(settings, stop=("x",)), request_of(settings)])
        assert [reply.finish_reason for reply in replies] == ["stop", "error", "stop"]
        assert (replies[1].response, replies[1].failure) == ("", "HTTP 400: unknown field stop")
        assert replies[0].failure is None
        fake.failures = [BUSY] * ATTEMPTS
        [reply] = replies_of(backend, [request_of(settings)])
        assert reply.finish_reason == "error" and f"({ATTEMPTS} times)" in reply.failure


def test_a_server_that_goes_away_ends_the_run_and_leaves_no_error_behind(config):
    fake = FakeServer(answers=ANSWERS)
    with fake.serve() as url:
        backend = ServerBackend(settings := config(url, sampling="greedy"))
        for action in fake.stop:
            action()
        replies = []
        with pytest.raises(ServerGoneError, match=r"does not answer any more.*start the same command again"):
            backend.generate([request_of(settings)] * 9, lambda *reply: replies.append(reply))
        assert replies == []


def test_a_server_need_not_list_its_models(config):
    with FakeServer(answers=ANSWERS, models=None).serve() as url:
        settings = config(url, sampling="greedy")
        named = dataclasses.replace(settings, server=dataclasses.replace(settings.server, model="fake"))
        assert ServerBackend(named).labels == ()
        with pytest.raises(ValueError, match="HTTP 500: no list"):
            ServerBackend(settings)


def test_a_key_is_sent(config, monkeypatch):
    with FakeServer(answers=ANSWERS, key="secret").serve() as url:
        with pytest.raises(ValueError, match=r"HTTP 401: no such key; put the key into .* OPENAI_API_KEY\."):
            ServerBackend(config(url))
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        assert ServerBackend(config(url)).fingerprint


def test_what_cannot_be_is_said_in_one_line(config, capsys, tmp_path):
    (tmp_path / "run.py").write_text("from eval.config import EvalConfig\n\nconfig = EvalConfig\n")
    with FakeServer(answers=ANSWERS, models=({"id": "a"}, {"id": "b"})).serve() as url:
        cases = {
            (url,): "no --server.model is given, and the server has a, b; name one of them.",
            (url, "--server.model", "c"): "--server.model c, and the server has a, b; name one of them.",
            (url.removesuffix("/v1"),): "--server.url goes up to the version, such as http://localhost:8000/v1.",
            (url, "--server.accept-dropped", "top_p"): "no such setting; give presence_penalty, top_k, seed, thinking.",
            (url, "--server.model", "a", "--detect-loops"): "of servers only `qwen35 serve` knows it",
            ("localhost",): "give an address such as http://localhost:8000/v1.",
        }
        with socket.create_server(("127.0.0.1", 0)) as closed:
            gone = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        cases[gone,] = "start the server, or correct --server.url."
        settings = config(url)
        for (address, *flags), message in cases.items():
            command = ["--tasks", "qa", "--data-dir", settings.data_dir, "--out", settings.out, "--server.url", address]
            with pytest.raises(SystemExit) as stopped:
                main([str(tmp_path / "run.py"), *command, *flags])
            [line] = capsys.readouterr().err.splitlines()
            assert message in line, flags
            assert stopped.value.code == 2


def test_our_own_server_passes_the_probe_and_writes_what_its_engine_writes(config, engine, tokenizer):  # noqa: F811
    for mode in ("thinking", "non_thinking"):
        prompt = tokenizer.encode_chat(user_turn("1+1?"), enable_thinking=mode == "thinking")
        # The server derives the seed of each choice from that of the request.
        [want] = engine.generate([prompt], sampling=SamplingParams(**SAMPLING), max_new_tokens=40, seed=[seed_of(3, 0)])
        with running(make_app(engine, "tiny")) as address:
            backend = ServerBackend(settings := config(f"{address}/v1", mode=mode))
            assert backend.labels == ()
            [reply] = replies_of(backend, [request_of(settings, mode=mode, **SAMPLING)])
        assert (reply.thinking or "", reply.response) == (want.thinking or "", want.answer)
        assert (reply.finish_reason, reply.num_tokens) == (want.finish_reason, len(want.token_ids))


@pytest.mark.parametrize("reason", ["loop", "budget", "length"])
def test_our_own_server_tells_why_a_response_ended(config, scripted, reason, monkeypatch):  # noqa: F811
    _, app = scripted(f"{THOUGHT}42<|im_end|>", reason=reason)
    with running(app) as address:
        settings = config(
            f"{address}/v1", mode="thinking", sampling="greedy", thinking_budget=5, detect_loops=True,
            accept=("presence_penalty", "top_k", "seed"),
        )  # fmt: skip
        [reply] = replies_of(ServerBackend(settings), [request_of(settings, mode="thinking", thinking_budget=5)])
    assert (reply.finish_reason, reply.thinking, reply.response) == (reason, "well", "42")
    assert reply.closed_by_budget == (reason == "budget")
