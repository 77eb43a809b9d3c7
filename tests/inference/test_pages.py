"""The pages of the engine's memory: none is lost, none has two owners that do not know of each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen35_jax.inference.pages import PagePool


def test_pages_are_given_out_whole_or_not_at_all():
    pool = PagePool(num_pages=5, page_size=8)
    assert pool.num_free == 4
    taken = pool.take(3)
    assert taken is not None and 0 not in taken and len(set(taken)) == 3
    assert pool.take(2) is None and pool.num_free == 1
    pool.give_back(taken)
    assert pool.num_free == 4


@pytest.mark.parametrize("tokens, pages", [(0, 0), (1, 1), (8, 1), (9, 2), (64, 8)])
def test_a_begun_page_counts(tokens, pages):
    assert PagePool(2, 8).pages_for(tokens) == pages


def test_a_shared_page_is_free_after_its_last_owner():
    pool = PagePool(3, 4)
    pages = pool.take(2)
    pool.share(pages[:1])
    pool.give_back(pages)
    assert pool.num_free == 1
    pool.give_back(pages[:1])
    assert pool.num_free == 2


def test_giving_back_twice_is_a_fault_of_ours():
    pool = PagePool(3, 4)
    pages = pool.take(1)
    pool.give_back(pages)
    with pytest.raises(AssertionError, match="given back twice"):
        pool.give_back(pages)


@pytest.mark.parametrize("num_pages, page_size", [(1, 8), (0, 8), (4, 0)])
def test_a_pool_without_room_is_refused(num_pages, page_size):
    with pytest.raises(ValueError, match=f"{num_pages} pages of {page_size} tokens hold nothing"):
        PagePool(num_pages, page_size)


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "give back"]), st.integers(0, 6)), max_size=60))
def test_no_page_is_lost_or_given_out_twice(actions):
    pool, owned = PagePool(8, 4), []
    for action, size in actions:
        if action == "take":
            pages = pool.take(size)
            if pages is not None:
                owned.append(pages)
        elif owned and action == "share":
            pages = owned[size % len(owned)]
            pool.share(pages)
            owned.append(list(pages))
        elif owned:
            pool.give_back(owned.pop(size % len(owned)))
        in_use = {page for pages in owned for page in pages}
        assert pool.num_free == 7 - len(in_use)
    for pages in owned:
        pool.give_back(pages)
    assert sorted(pool.take(7)) == list(range(1, 8))
