"""Processes that would train different things refuse to begin, in one line that names the difference."""

import copy
import itertools

import pytest

from qwen35_jax.runs import BaseIdentity
from train import agreement
from train.agreement import AgreedBatches, check_agreement
from train.config import DataConfig, ModelSource, Options, ProcessConfig, Recipe, TrainConfig
from train.record import RunRecord


def record(**options):
    recipe = Recipe(ModelSource("base"), DataConfig("train.jsonl"), steps=10)
    return RunRecord(TrainConfig(recipe, options=Options(**options)), BaseIdentity("model", {}), {"data": "1"}, True)


@pytest.fixture
def others(monkeypatch):
    """Lets process 1 have what a function makes of the values of process 0."""

    def become(change):
        def gather(own):
            other = copy.deepcopy(own)
            change(other)
            return [own, other]

        monkeypatch.setattr(agreement, "gather", gather)

    return become


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda other: other["recipe"].update(seed=7), "seed is 0 in process 0 and 7 in process 1;"),
        (lambda other: other["recipe"]["optim"].update(b1=0.5), "optim.b1 is 0.9 in process 0 and 0.5"),
        (lambda other: other["layout"].update(loss_chunk=64), "loss_chunk is 256"),
        (lambda other: other["identity"]["data"].update(data="2"), "identity.data.data is '1'"),
        (lambda other: other.update(code="stale"), "code is '.*' in process 0 and 'stale'"),
        (lambda other: other.update(jax="0.1"), "jax is '.*' in process 0 and '0.1'"),
        (lambda other: other.update({"newest whole checkpoint": 4}), "newest whole checkpoint is 8 in process 0 and 4"),
        (lambda other: [other.update(jax="0.1"), other["recipe"].update(seed=7)], r"\(and 1 more\); start the same"),
    ],
)
def test_a_difference_is_named(others, change, message):
    others(change)
    with pytest.raises(ValueError, match=f"the processes of the run disagree: .*{message}"):
        check_agreement(record(), 8)


def test_equal_processes_pass_whichever_they_are(others):
    others(lambda other: None)
    check_agreement(record(processes=ProcessConfig("host:1", 2, 1)), None)


class Numbers:
    """Batches that are numbers; the position is how many were taken."""

    def __init__(self, bad=None):
        self.taken, self.bad = 0, bad

    def __next__(self):
        self.taken += 1
        if self.taken == self.bad:
            raise OSError(5, "no answer", "/data")
        return self.taken

    def get_state(self):
        return self.taken


@pytest.mark.parametrize(
    ("bad", "theirs", "kind", "message"),
    [
        (None, "line 7: bad", ValueError, "process 1: line 7: bad"),
        (3, None, OSError, "no answer"),
        (3, "line 7: bad", OSError, "no answer"),
    ],
)
def test_no_process_has_a_batch_that_another_lacks(monkeypatch, bad, theirs, kind, message):
    rounds = itertools.count(1)
    monkeypatch.setattr(agreement, "exchange", lambda own: [own, theirs if next(rounds) == 3 else None])
    batches = AgreedBatches(Numbers(bad))
    assert [next(batches), next(batches), batches.get_state()] == [1, 2, 2]
    with pytest.raises(kind, match=message):
        next(batches)
    assert batches.get_state() == 2
