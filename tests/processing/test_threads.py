import threading

import pytest

from qwen35_jax.processing import threads
from qwen35_jax.processing.threads import in_shares, in_threads


@pytest.fixture(params=[1, 3, 16])
def cores(request, monkeypatch):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: request.param)
    return request.param


def in_another_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_results_keep_their_order(cores):
    assert in_threads(lambda a, b: a * b, range(50), range(50)) == [n * n for n in range(50)]
    assert in_threads(str, []) == []


@pytest.mark.parametrize("places", [range(0), range(1), range(7), range(0, 100, 16)])
def test_every_place_is_in_one_share(cores, places):
    seen = []
    in_shares(lambda share: seen.extend(share), places)
    assert sorted(seen) == list(places)


def test_only_the_main_thread_spreads_its_work(cores):
    def users():
        return {name for name in in_threads(lambda _: threading.current_thread().name, range(8))}

    here = threading.current_thread().name
    assert (here in users()) == (cores == 1)
    assert len(in_another_thread(users)) == 1


def test_errors_come_through(cores):
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda n: 1 // n, range(4))
