"""Requests to a server that is slow, full, broken or gone."""

import email.utils
import socket
import time

import pytest

from eval.backends.client import ATTEMPTS, Client
from eval.backends.stream import Answer, RefusedError, UnansweredError
from tests.eval.openai_server import FakeServer

CHAT = "/chat/completions"
BUSY = (429, {}, {"error": {"message": "busy"}})
BROKEN = (500, {}, b"<html>\nsorry</html>")


def chat(text="q", **fields):
    return {"model": "fake", "messages": [{"role": "user", "content": text}], "max_tokens": 50, **fields}


@pytest.fixture
def client_of(monkeypatch):
    monkeypatch.setattr(Client, "first_wait", 0.01)
    return lambda url, connections=4: Client(url, None, connections)


def test_an_answer_is_read_whole(client_of):
    text = "a\u2028b\x85c \x1c é\n\nd"
    with FakeServer(answers={"q": f"so\u2028so</think>{text}"}).serve() as url:
        plain = client_of(url).ask(CHAT, chat())
        thinking = client_of(url).ask(CHAT, chat(chat_template_kwargs={"enable_thinking": True}))
        continued = client_of(url).ask("/completions", {"model": "fake", "prompt": "q", "max_tokens": 1})
    assert (plain.text, plain.reasoning.strip(), plain.finish_reason) == (text, "", "stop")
    assert (thinking.text, thinking.reasoning) == (text, "so\u2028so")
    assert plain.prompt_tokens != thinking.prompt_tokens
    assert continued.finish_reason == "length" and text.startswith(continued.text.partition("</think>")[2])


def test_an_answer_that_is_no_stream_is_read_too(client_of):
    message = {"role": "assistant", "content": "42", "reasoning": "so"}
    whole = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 7}}
    with FakeServer(failures=[(200, {}, whole)]).serve() as url:
        assert client_of(url).ask(CHAT, chat()) == Answer("42", "so", "stop", completion_tokens=7)


@pytest.mark.parametrize(
    "failure", [BUSY, BROKEN, "drop", "half", (200, {}, b"no json"), (200, {}, {"error": {"message": "overloaded"}})]
)
def test_a_failure_that_may_pass_is_tried_again(client_of, failure):
    fake = FakeServer(answers={"q": "42"}, failures=[failure] * (ATTEMPTS - 1))
    with fake.serve() as url:
        client = client_of(url)
        assert client.ask(CHAT, chat()).text == "42"
    assert len(fake.bodies) == ATTEMPTS and fake.bodies[0] == fake.bodies[-1]
    # What was written in vain is not counted.
    assert client.generated_tokens == 1


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (BUSY, rf"HTTP 429: busy \({ATTEMPTS} times\)"),
        (BROKEN, "HTTP 500: <html> sorry</html>"),
        ("half", "without a finish_reason"),
    ],
)
def test_a_failure_that_does_not_pass_is_given_up(client_of, failure, message):
    with FakeServer(failures=[failure] * ATTEMPTS).serve() as url, pytest.raises(UnansweredError, match=message):
        client_of(url).ask(CHAT, chat())


def test_a_refusal_is_not_tried_again(client_of):
    fake = FakeServer(rejects=["top_k"])
    with fake.serve() as url, pytest.raises(RefusedError, match="HTTP 400: unknown field top_k"):
        client_of(url).ask(CHAT, chat(top_k=3))
    assert len(fake.bodies) == 1


@pytest.mark.parametrize("as_date", [False, True], ids=["seconds", "date"])
def test_the_server_says_when_to_come_back(client_of, as_date):
    wait = email.utils.formatdate(time.time() + 2.5, usegmt=True) if as_date else "1"
    with FakeServer(failures=[(503, {"Retry-After": wait}, {})]).serve() as url:
        started = time.monotonic()
        client_of(url).ask(CHAT, chat(max_tokens=1))
    assert time.monotonic() - started > 0.9


def test_many_requests_run_at_once_and_each_keeps_its_place(client_of):
    fake = FakeServer(answers={f"q{number}": f"a{number}" for number in range(30)})
    fake.hold = lambda body: time.sleep(0.05)
    answers = {}
    with fake.serve() as url:
        bodies = [(CHAT, chat(f"q{number}")) for number in range(30)]
        client_of(url, connections=6).ask_all(bodies, answers.__setitem__)
    assert {place: answer.text for place, answer in answers.items()} == {n: f"a{n}" for n in range(30)}
    assert 2 <= fake.most_running <= 6


def test_an_error_of_the_caller_ends_all_requests(client_of):
    def stop(place, answer):
        raise KeyError("stop")

    with FakeServer().serve() as url, pytest.raises(KeyError, match="stop"):
        client_of(url).ask_all([(CHAT, chat())] * 20, stop)


def test_tokens_are_counted_while_they_come(client_of):
    fake = FakeServer(answers={"q": "one two three four"})
    seen = []
    with fake.serve() as url:
        client = client_of(url, connections=1)
        client.ask_all([(CHAT, chat())] * 3, lambda *_: seen.append(client.generated_tokens))
    assert seen == [4, 8, 12]


def test_a_server_that_does_not_count_has_its_tokens_reckoned(client_of):
    with FakeServer(answers={"q": "x" * 400}, usage=False).serve() as url:
        client = client_of(url)
        assert client.ask(CHAT, chat()).completion_tokens is None
    assert client.generated_tokens == 100


def test_nobody_is_there(client_of):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UnansweredError):
        client_of(f"http://127.0.0.1:{port}/v1").models()


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x/v1", "http://", "http://[::1/v1", ""])
def test_a_wrong_address_is_refused(url):
    with pytest.raises(ValueError, match=r"--server\.url .*such as http://localhost:8000/v1"):
        Client(url, None, 4)
