"""How long samples thought."""

from eval.report.thinking import thinking_lengths


def sample(tokens, closes, outcome="ok", correct=True):
    return {"num_tokens": tokens, "close_positions": closes, "outcome": outcome, "correct": correct}


def test_thinking_ends_at_the_first_close_and_an_open_thought_counts_whole():
    samples = [
        sample(50, [5]),
        sample(60, [15, 40], correct=False),
        sample(100, [], "truncated"),
        sample(100, [2], "loop", correct=True),
        sample(400, [300]),
        sample(70, None),
    ]
    told = thinking_lengths(samples)
    assert (told["p50"], told["max"], told["mean"]) == (15, 300, (5 + 15 + 100 + 2 + 300) / 5)
    # The bins that hold 2, 5, 15, 100 and 300 tokens.
    places = [next(i for i, edge in enumerate(told["edges"]) if edge > tokens) - 1 for tokens in (2, 5, 15, 100, 300)]
    loop, short, middle, cut, long = places
    filled = {kind: [place for place, count in enumerate(told[kind]) if count] for kind in ("right", "wrong", "cut")}
    assert filled == {"right": [short, long], "wrong": [middle], "cut": [loop, cut]}


def test_without_a_closed_thought_there_is_nothing_to_tell():
    assert thinking_lengths([sample(50, []), sample(None, None)]) is None
