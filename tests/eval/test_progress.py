"""What a run tells of itself while it goes on."""

import io
import re
import time
import types

import numpy as np
import pytest

from eval.progress import Progress, Responses


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


def backend(slots=2):
    return types.SimpleNamespace(slots=slots, generated_tokens=1000)


def requests(*limits):
    return [types.SimpleNamespace(max_new_tokens=limit) for limit in limits]


def sample(tokens, correct=True, outcome="ok"):
    return {"num_tokens": tokens, "correct": correct, "outcome": outcome}


def test_a_line_tells_all():
    writer = backend()
    responses = Responses(writer, requests(*[100] * 4), now=0.0)
    assert responses.line() == "0 of 4 finished"
    writer.generated_tokens += 20
    responses.look(10.0)
    assert responses.line() == "0 of 4 finished, 2 tokens/s"
    assert responses.seconds_left is None
    writer.generated_tokens += 20
    responses.finish(1, sample(20), now=20.0)
    # A token a second and slot. Three more take 40 s if all are as long as the first, and the other running one is
    # longer already.
    assert 40 < responses.seconds_left < 80
    assert responses.line() == (
        "1 of 4 finished, 2 tokens/s, 100.0% right so far (biased: short answers finish first), "
        f"about {responses.seconds_left:.0f} s left"
    )
    for place, seconds in ((0, 30.0), (2, 40.0), (3, 50.0)):
        writer.generated_tokens += 20
        responses.finish(place, sample(20, correct=place == 2), seconds)
    assert responses.line() == "4 of 4 finished, 2 tokens/s, 50.0% right"


def test_those_with_the_highest_limit_begin_first():
    responses = Responses(backend(slots=2), requests(5, 50, 5, 50, 50), now=0.0)
    assert set(responses._running) == {1, 3}
    responses.finish(1, sample(3), now=1.0)
    assert set(responses._running) == {3, 4}
    # Some other one may have begun after all.
    responses.finish(2, sample(3), now=2.0)
    assert set(responses._running) == {3, 4}
    assert list(responses._order) == [0]


@pytest.mark.parametrize("outcome", ["ok", "error"])
def test_tokens_that_nobody_counted_are_reckoned(outcome):
    writer = backend()
    responses = Responses(writer, requests(50, 50, 50), now=0.0)
    writer.generated_tokens += 24
    responses.finish(0, sample(None, outcome=outcome), now=1.0)
    assert responses._lengths == ([12] if outcome == "ok" else [])


def test_a_count_that_falls_back_is_no_progress():
    writer = backend()
    responses = Responses(writer, requests(50, 50), now=0.0)
    writer.generated_tokens += 20
    responses.look(2.0)
    writer.generated_tokens -= 10
    responses.look(4.0)
    assert responses._clock == 10


def test_a_simulated_run_knows_its_end():
    """As the loop of an engine: a token a slot and step, and what ends makes room."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(np.exp(rng.normal(np.log(200), 1.0, 300)).astype(int) + 1, 800)
    writer = backend(slots=16)
    responses = Responses(writer, requests(*[800] * 300), now=0.0)
    running, waiting, told, step = {}, list(range(300)), {}, 0
    while running or waiting:
        while waiting and len(running) < 16:
            running[waiting.pop(0)] = 0
        step += 1
        writer.generated_tokens += len(running)
        for place in list(running):
            running[place] += 1
            if running[place] == lengths[place]:
                del running[place]
                outcome = "truncated" if lengths[place] == 800 else "ok"
                responses.finish(place, sample(int(lengths[place]), outcome=outcome), now=step * 0.1)
                if responses._num_finished in (75, 150, 225):
                    told[step] = responses.seconds_left
    for when, left in told.items():
        assert left == pytest.approx((step - when) * 0.1, rel=0.2)


def test_a_terminal_has_one_line_that_changes_though_nothing_finishes():
    stream, writer = Stream(terminal=True), backend()
    with Progress(writer, requests(9, 9), stream=stream, seconds=0.02):
        for _ in range(20):
            writer.generated_tokens += 10
            time.sleep(0.02)
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    rates = re.findall(r"0 of 2 finished, ([\d,]+) tokens/s", text)
    assert len(rates) > 3


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_fits_the_terminal_and_a_file_has_whole_ones(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Stream(terminal)
    with Progress(backend(), requests(9), stream=stream) as progress:
        progress.finish(0, sample(3))
    [line, _] = stream.getvalue().split("\n")
    line = line.split("\x1b[2K")[-1]
    assert line.startswith("1 of 1 finished")
    assert len(line) <= 39 or not terminal


def test_a_failing_run_tells_how_far_it_came_and_leaves_no_thread():
    stream = Stream(terminal=False)
    progress = Progress(backend(), requests(9, 9), stream=stream, seconds=0.01)
    with pytest.raises(KeyError), progress:
        progress.finish(0, sample(3, correct=False))
        raise KeyError
    assert "1 of 2 finished" in stream.getvalue()
    assert not progress._thread.is_alive()


def test_nothing_to_do_is_not_told():
    stream = Stream(terminal=True)
    with Progress(backend(), [], stream=stream):
        pass
    assert stream.getvalue() == ""
