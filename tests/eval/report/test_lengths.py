"""How long samples thought."""

from eval.report.lengths import thinking_lengths


def sample(tokens, closes, outcome="ok", correct=True):
    return {"num_tokens": tokens, "close_positions": closes, "outcome": outcome, "correct": correct}


def test_thinking_ends_at_the_first_close_and_an_open_thought_counts_whole():
    samples = [
        sample(50, [5]),
        sample(60, [15, 40], correct=False),
        sample(100, [], "truncated"),
        sample(100, [2], "loop", correct=True),
        sample(400, [300]),
        sample(None, None),
    ]
    counts = thinking_lengths(samples, {"edges": [0, 10, 20, 100]})
    # What is longer than the last edge stands in the last bin.
    assert (counts["right"], counts["wrong"], counts["cut"]) == ([1, 0, 1], [0, 1, 0], [1, 0, 1])
    assert (counts["p50"], counts["max"], counts["mean"]) == (15, 300, (5 + 15 + 100 + 2 + 300) / 5)


def test_without_a_closed_thought_there_is_nothing_to_tell():
    assert thinking_lengths([sample(50, []), sample(None, None)], {"edges": [0, 10]}) is None
    assert thinking_lengths([sample(50, [3])], None) is None
