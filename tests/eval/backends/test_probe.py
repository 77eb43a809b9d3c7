"""A server that drops a setting is found out, and one that follows all is not."""

import pytest

from eval.backends.client import Client
from eval.backends.probe import SETTINGS, probe
from tests.eval.openai_server import FakeServer


def findings(fake, needed=SETTINGS, path="/chat/completions"):
    with fake.serve() as url:
        client = Client(url, None, 4)

        def ask(text, fields):
            asked = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
            return client.ask(path, {"model": "fake", **asked, **fields})

        return probe(ask, needed)


# A question of the probe, with a thought.
THOUGHT = {"What is 17 + 25? Answer with the number alone.": "well it is\n</think>\n\n42"}


@pytest.mark.parametrize("parses_thinking", [True, False])
@pytest.mark.parametrize("usage", [True, False])
def test_an_honest_server_passes(parses_thinking, usage):
    found = findings(FakeServer(parses_thinking=parses_thinking, usage=usage, answers=THOUGHT))
    assert (found.dropped, found.rejected) == ({}, frozenset())


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2], ids=["exact", "unsteady", "shaky"])
@pytest.mark.parametrize("setting", ["presence_penalty", "top_k"])
def test_a_dropped_setting_is_found(setting, noise):
    assert set(findings(FakeServer(ignores=[setting], noise=noise), [setting]).dropped) == {setting}


@pytest.mark.parametrize("noise", [0.02, 0.2], ids=["unsteady", "shaky"])
def test_unsteady_arithmetic_is_no_dropped_penalty(noise):
    assert findings(FakeServer(noise=noise), ["presence_penalty"]).dropped == {}


def test_slightly_unsteady_arithmetic_is_no_dropped_setting():
    assert findings(FakeServer(noise=0.005, answers=THOUGHT)).dropped == {}


@pytest.mark.parametrize(
    ("ignored", "reason"),
    [
        ("seed", "equal seeds give different texts"),
        ("temperature", "different seeds give equal texts"),
    ],
)
def test_seeds_that_do_nothing_are_found(ignored, reason):
    fake = FakeServer(ignores=[ignored])
    if ignored == "temperature":
        fake.write = lambda prompt, body: FakeServer.write(fake, prompt, body | {"temperature": 0})
    assert findings(fake).dropped["seed"] == reason


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("answers", [THOUGHT, {question: "42" for question in THOUGHT}], ids=["thinks", "answers"])
def test_a_thinking_switch_that_does_nothing_is_found(usage, answers):
    fake = FakeServer(ignores=["thinking"], usage=usage, answers=answers)
    assert set(findings(fake, ["thinking"]).dropped) == {"thinking"}


def test_a_server_that_thinks_with_the_switch_off_is_found():
    with FakeServer(usage=False, answers=THOUGHT).serve() as url:
        client = Client(url, None, 1)

        def ask(text, fields):
            switched_on = {"chat_template_kwargs": {"enable_thinking": True}}
            messages = [{"role": "user", "content": text}]
            return client.ask("/chat/completions", {"model": "fake", "messages": messages, **fields, **switched_on})

        assert probe(ask, ["thinking"]).dropped == {"thinking": "with the switch off there is thinking"}


@pytest.mark.parametrize(
    ("field", "setting"),
    [("presence_penalty", "presence_penalty"), ("top_k", "top_k"), ("chat_template_kwargs", "thinking")],
)
def test_a_rejected_field_is_told_and_spoils_no_other_test(field, setting):
    found = findings(FakeServer(rejects=[field], answers=THOUGHT))
    assert found.rejected == {setting}
    assert found.dropped == {setting: f"it is refused (HTTP 400: unknown field {field})"}


def test_only_what_is_needed_is_tried():
    fake = FakeServer(ignores=SETTINGS)
    assert findings(fake, ()).dropped == {}
    assert len(fake.bodies) == 1


def test_texts_without_a_chat_are_tried_too():
    needed = ["presence_penalty", "top_k", "seed"]
    assert findings(FakeServer(), needed, "/completions").dropped == {}
    assert set(findings(FakeServer(ignores=needed), needed, "/completions").dropped) == set(needed)
