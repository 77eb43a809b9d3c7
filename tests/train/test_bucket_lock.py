"""One run at a time works in a bucket, whatever became of the one before."""

import contextlib
import json
import os
import socket
import threading
import time

import pytest

from qwen35_jax.gcs import BucketError
from tests.gcs.emulator import Fault
from tests.train.launching import wait_until
from train.bucket_lock import BucketLock
from train.lock import LOCK, describe_self


@pytest.fixture(autouse=True)
def short_lease(monkeypatch):
    monkeypatch.setattr("train.bucket_lock.BEAT_SECONDS", 0.1)
    monkeypatch.setattr("train.bucket_lock.LEASE_SECONDS", 1.0)


@pytest.fixture
def is_far(monkeypatch):
    """Lets locks that are taken from now on name another host."""
    return lambda: monkeypatch.setattr("train.bucket_lock.describe_self", lambda: describe_self() | {"host": "far"})


def owner_of(place):
    return json.loads(place.get(LOCK))


def owned_by(place, **owner):
    place.put(LOCK, json.dumps(describe_self() | {"token": "other"} | owner).encode())


def test_a_lock_is_held_renewed_and_given_back(place):
    lock = BucketLock(place.address)
    with lock.held():
        assert owner_of(place)["pid"] == os.getpid() and owner_of(place)["host"] == socket.gethostname()
        before = len(place.emulator.requests)
        time.sleep(0.6)
        assert "PATCH" in {method for method, _, _ in place.emulator.requests[before:]}
        lock.check()
    assert not place.sizes()


def test_a_second_run_on_the_same_host_is_refused_at_once(place):
    with BucketLock(place.address).held():
        began = time.monotonic()
        expected = rf"{place.address} is in use by process {os.getpid()} on .* since .*; .*another --workdir"
        with pytest.raises(ValueError, match=expected):
            BucketLock(place.address).held().__enter__()
        assert time.monotonic() - began < 0.8
        assert owner_of(place)["pid"] == os.getpid()


def test_a_run_on_another_host_counts_while_it_renews(place, is_far):
    is_far()
    with BucketLock(place.address).held(), pytest.raises(ValueError, match=r"in use by process \d+ on far"):
        BucketLock(place.address).held().__enter__()


def test_a_run_that_is_gone_from_another_host_gives_way_after_the_lease(place):
    owned_by(place, host="far")
    began = time.monotonic()
    with BucketLock(place.address).held():
        assert time.monotonic() - began >= 1.0
        assert owner_of(place)["host"] == socket.gethostname()


def test_a_run_that_is_gone_from_this_host_gives_way_at_once(place):
    owned_by(place, began="1")  # Another process has its number now.
    began = time.monotonic()
    with BucketLock(place.address).held():
        assert time.monotonic() - began < 0.8


@pytest.mark.parametrize("left_by", ["nobody", "a run that is gone"])
def test_of_several_starts_at_once_one_goes_on(place, left_by):
    if left_by != "nobody":
        owned_by(place, began="1")
    outcomes, all_tried = [], threading.Barrier(6)

    def start():
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(BucketLock(place.address).held())
                outcomes.append("mine")
            except ValueError as err:
                outcomes.append(str(err))
            all_tried.wait(30)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("mine") == 1
    assert sum("is in use by process" in outcome for outcome in outcomes) == 5


def test_a_run_that_lost_its_lock_is_told_and_leaves_the_other_alone(place):
    lock = BucketLock(place.address)
    with lock.held():
        owned_by(place, host="far")
        wait_until(lambda: lock.is_lost)
        with pytest.raises(BucketError, match=rf"{place.address} belongs to another run now") as caught:
            lock.check()
        assert caught.value.errno is None  # exit code 2
    assert owner_of(place)["host"] == "far"


@pytest.mark.parametrize("fault", [Fault("refuse", "PATCH", status=503), Fault("break off", "PATCH", times=5)])
def test_a_service_that_fails_for_a_while_costs_no_lock(place, fault):
    lock = BucketLock(place.address)
    with lock.held():
        place.fail(fault)
        wait_until(lambda: fault.seen > 5)
        lock.check()
        place.fail()
        before = len(place.emulator.requests)
        wait_until(lambda: "PATCH" in {method for method, _, _ in place.emulator.requests[before:]})
        lock.check()
    assert not place.sizes()


def test_a_lock_whose_answer_was_lost_is_ours(place):
    place.fail(Fault("break off", "POST", name=LOCK, times=1))
    with BucketLock(place.address).held():
        assert owner_of(place)["pid"] == os.getpid()
    assert not place.sizes()


def test_a_bucket_that_refuses_is_named(place):
    place.fail(Fault("refuse", "POST", name=LOCK, status=403, message="no storage.objects.create access"))
    with pytest.raises(BucketError, match=rf"{place.address}/{LOCK}: .*no storage.objects.create access.*Object User"):
        BucketLock(place.address).held().__enter__()


def test_a_bucket_that_loses_the_lock_is_named(place):
    place.fail(Fault("lose", "POST", name=LOCK))
    with pytest.raises(BucketError, match=rf"{place.address}/{LOCK} is missing right after .*loses writes"):
        BucketLock(place.address).held().__enter__()


@pytest.mark.parametrize("content", [b"notes", b"[]", b"{}"])
def test_an_object_that_is_no_lock_is_not_removed(place, content):
    place.put(LOCK, content)
    with pytest.raises(ValueError, match=r"is not the lock of a run .*remove it"):
        BucketLock(place.address).held().__enter__()
    assert place.get(LOCK) == content
