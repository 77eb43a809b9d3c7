"""Which samples the page shows, and how their texts are made short."""

import dataclasses
import html

import pytest

from eval.protocols import Protocol
from eval.report.failures import SHOWN, failures_of, prompt_text, shorten
from eval.samples import Reply, SampleFile, make_sample
from eval.tasks.base import Document, Likelihood, Verdict, user_turn


def document(number, *, correct=False, parsed=True, prediction="x"):
    verdict = Verdict(correct, {"accuracy": [correct], "each": [1.0, 0.0]}, prediction, parsed)
    return Document(number, user_turn(f"question {number}"), lambda response: verdict, "subject", target="y")


def drawn(path, samples):
    file = SampleFile(path)
    for sample in samples:
        file.append(sample)
    return failures_of({"qa": file}, {}, style="chat")["qa"]


def test_only_samples_that_are_not_right_are_drawn_by_kind(tmp_path):
    lenient = Protocol("s", cut_is_wrong=False)
    samples = [
        make_sample(document("right", correct=True), Reply(None, "x", "stop"), lenient),
        make_sample(document("cut and right", correct=True), Reply(None, "x", "length"), lenient),
        make_sample(document("wrong"), Reply(None, "x", "stop"), lenient, repeat=3),
        make_sample(document("unparsed", parsed=False, prediction=None), Reply(None, "x", "stop"), lenient),
        make_sample(document("truncated"), Reply(None, "x", "length"), lenient),
        make_sample(document("loop"), Reply("t", "", "loop"), lenient),
        make_sample(document("empty"), Reply("t", " ", "stop"), lenient),
        make_sample(document("error"), Reply(None, "", "error"), lenient),
    ]
    kinds = drawn(tmp_path / "qa.jsonl", samples)
    names = ["wrong", "unparsed", "truncated", "loop", "empty", "error"]
    assert [(kind.name, kind.count) for kind in kinds] == [(name, 1) for name in names]
    assert [kind.shown[0].name for kind in kinds] == ["wrong, repeat 3", *names[1:]]
    assert kinds[0].shown[0].facts == {
        "extracted": "x", "right answer": "y", "scores": "accuracy 0; each 1, 0", "ended by": "stop",
    }  # fmt: skip
    assert kinds[1].shown[0].facts["extracted"] == "nothing"
    assert kinds[3].shown[0].texts.keys() == {"thinking"}


def test_the_draw_is_spread_and_does_not_depend_on_the_order_of_samples(tmp_path):
    samples = [make_sample(document(number), Reply(None, "x", "stop"), Protocol("s")) for number in range(500)]
    (kind,) = drawn(tmp_path / "a.jsonl", samples)
    (other,) = drawn(tmp_path / "b.jsonl", samples[::-1])
    numbers = [int(failure.name) for failure in kind.shown]
    assert (kind.count, len(numbers)) == (500, SHOWN) and numbers == sorted(numbers)
    assert sorted(int(failure.name) for failure in other.shown) == numbers
    # Twenty of 500 at random: all in one half has a probability of 2 in a million.
    assert min(numbers) < 250 <= max(numbers)


def test_a_task_that_extracts_nothing_does_not_say_that_nothing_was_found(tmp_path):
    samples = [make_sample(document(1, prediction=None), Reply(None, "x", "stop"), Protocol("s"))]
    assert "extracted" not in drawn(tmp_path / "qa.jsonl", samples)[0].shown[0].facts


@pytest.mark.parametrize("text", ["plain words " * 50, "<>&'\"" * 100, "数字" * 200, "\ud83d" * 300])
@pytest.mark.parametrize("most", [0, 1, 10, 100, 333])
def test_a_text_is_cut_in_the_middle_to_its_room(text, most):
    short = shorten(text, most)
    escaped = html.escape(short.head + short.tail).encode("utf-8", "replace")
    assert len(escaped) <= most
    assert text.startswith(short.head) and text.endswith(short.tail)
    assert short.length == len(text) == len(short.head) + short.left_out + len(short.tail)
    assert not short.left_out or abs(len(short.head) - len(short.tail)) <= 1
    # The room is used: at most a tenth of it, and one character, is left.
    assert not short.left_out or len(escaped) >= 0.9 * most - 6


def test_a_text_that_fits_is_whole():
    assert dataclasses.astuple(shorten("a<b", 8)) == (3, "a<b", 0, "")


def test_a_prompt_reads_as_it_was_asked():
    choices = Likelihood("2+2=", (" 4", " 5"), ("A", "B"), frozenset([0]))
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2+2?"}]
    each = Document(0, messages, lambda response: Verdict(True, {}), text="Q: 2+2? A:", likelihood=choices)
    assert prompt_text(each, "chat") == "system: Be short.\n\nuser: 2+2?"
    assert prompt_text(each, "text") == "Q: 2+2? A:"
    assert prompt_text(each, "likelihood") == "2+2=\n\nA: 4\nB: 5"
    pictured = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    assert prompt_text(dataclasses.replace(each, messages=pictured), "chat") == "(image)\nwhat?"
