"""Which checkpoints stay: the newest, every n-th, and the best."""

from hypothesis import given
from hypothesis import strategies as st

from train.retention import steps_to_keep

STEPS = [2, 4, 6, 8, 10]


def test_the_newest_stay():
    assert steps_to_keep(STEPS, keep=1) == {10}
    assert steps_to_keep(STEPS, keep=2) == {8, 10}
    assert steps_to_keep(STEPS, keep=9) == set(STEPS)
    assert steps_to_keep([], keep=1) == set()


def test_every_nth_and_the_best_stay_beside_them():
    assert steps_to_keep(STEPS, keep=1, keep_every=4) == {4, 8, 10}
    assert steps_to_keep(STEPS, keep=1, scores={2: 0.5, 6: 0.1, 10: 0.3}) == {6, 10}
    assert steps_to_keep(STEPS, keep=1, keep_every=8, scores={2: 0.5, 3: 0.1}) == {2, 8, 10}


@given(
    st.sets(st.integers(1, 30), min_size=1), st.integers(1, 3), st.none() | st.integers(1, 9),
    st.dictionaries(st.integers(1, 30), st.floats(allow_nan=False)),
)  # fmt: skip
def test_no_more_and_no_less_than_these_stay(steps, keep, keep_every, scores):
    steps = sorted(steps)
    stay = steps_to_keep(steps, keep=keep, keep_every=keep_every, scores=scores)
    others = stay - set(steps[-keep:]) - {step for step in steps if keep_every and step % keep_every == 0}
    scored = [scores[step] for step in steps if step in scores]
    assert len(others) <= 1 and all(scores[step] == min(scored) for step in others)
    assert not scored or min(scores[step] for step in stay if step in scores) == min(scored)
    assert stay <= set(steps) and steps[-1] in stay
