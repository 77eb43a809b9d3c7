"""The engine of slots: what it writes is what the model says, and a request's result is the same in any crowd."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.inference.slot_engine import SlotEngine, SlotRequest
from qwen35_jax.inference.slot_programs import decode, prefill
from qwen35_jax.inference.slot_sampling import Settings

SLOTS, PAGE, CHUNK, STEPS = 4, 8, 16, 4
THINK, END_THINK = 5, 6
GREEDY = Settings.row(temperature=0.0)
SAMPLED = [
    Settings.row(temperature=1.0),
    Settings.row(temperature=0.6, top_k=20, top_p=0.95, presence_penalty=1.5),
    Settings.row(temperature=1.2, top_k=5, min_p=0.05, repetition_penalty=1.1),
    Settings.row(temperature=0.9, top_p=0.8, frequency_penalty=0.4),
]


def make_engine(model, num_drafts: int, *, cache_tokens: int = 1024, poison: bool = False) -> SlotEngine:
    engine = SlotEngine(
        model, marks=(THINK, END_THINK), slots=SLOTS, cache_tokens=cache_tokens, num_drafts=num_drafts,
        page_size=PAGE, chunk=CHUNK, steps_per_call=STEPS,
    )  # fmt: skip
    if poison:
        engine._memory = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), engine._memory)
    return engine


@pytest.fixture(scope="module")
def prompts(model):
    rng = np.random.default_rng(0)
    return [rng.integers(7, model.config.text.vocab_size, length).tolist() for length in (1, 3, 17, 40, 16, 33, 2, 64)]


def some_requests(prompts, *, sampled: bool) -> list[SlotRequest]:
    return [
        SlotRequest(prompt, SAMPLED[i % 4] if sampled else GREEDY, limit=5 + 7 * (i % 5), seed=i)
        for i, prompt in enumerate(prompts)
    ]


def assert_equal(some, other):
    for a, b in zip(some, other, strict=True):
        assert a.tokens == b.tokens and a.finish_reason == b.finish_reason
        assert a.model_logprobs == b.model_logprobs and a.sampling_logprobs == b.sampling_logprobs


@pytest.mark.parametrize("num_drafts", [0, pytest.param(1, marks=pytest.mark.slow), 3])
def test_greedy_text_is_what_the_model_finds_most_likely(model, prompts, num_drafts):
    engine = make_engine(model, num_drafts, poison=True)
    done = engine.generate(some_requests(prompts, sampled=False))
    for i, (prompt, progress) in enumerate(zip(prompts, done, strict=True)):
        assert len(progress.tokens) == 5 + 7 * (i % 5) and progress.finish_reason == "length"
        text = np.zeros((1, 128), np.int32)
        text[0, : len(prompt) + len(progress.tokens)] = prompt + progress.tokens
        logits = np.asarray(model.logits(text))[0, len(prompt) - 1 :][: len(progress.tokens)]
        chosen = np.take_along_axis(logits, np.array(progress.tokens)[:, None], axis=-1)[:, 0]
        # Another order of sums may choose between two words that are this close.
        assert np.all(logits.max(axis=-1) - chosen < 1e-4)
        logprobs = chosen - np.log(np.exp(logits.astype(np.float64)).sum(axis=-1))
        np.testing.assert_allclose(progress.model_logprobs, logprobs, rtol=1e-4, atol=1e-4)
    assert engine.num_free_slots == SLOTS and engine.num_free_pages == 1024 // PAGE


@pytest.mark.parametrize("num_drafts", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_request_has_the_same_bits_alone_and_in_a_crowd(model, prompts, num_drafts):
    requests = some_requests(prompts, sampled=True)
    alone_in = make_engine(model, num_drafts)
    alone = [alone_in.generate([request])[0] for request in requests]
    crowd = make_engine(model, num_drafts, poison=True)
    assert_equal(crowd.generate(requests), alone)
    assert_equal(crowd.generate(requests[::-1])[::-1], alone)


@pytest.mark.parametrize("num_drafts", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_preempted_request_comes_out_with_the_same_bits(model, prompts, num_drafts):
    """There is room for about two requests, so the younger ones give their pages back again and again."""
    requests = some_requests(prompts, sampled=True)
    narrow = make_engine(model, num_drafts, cache_tokens=112, poison=True)
    alone = [narrow.generate([request])[0] for request in requests]
    assert narrow.metrics.preemptions == 0
    assert_equal(narrow.generate(requests), alone)
    assert narrow.metrics.preemptions > 0
    assert narrow.num_free_pages == 112 // PAGE


def test_an_aborted_request_leaves_no_trace(model, prompts):
    requests = some_requests(prompts, sampled=True)
    engine = make_engine(model, 2)
    want = [engine.generate([request])[0] for request in requests[:2]]
    numbers = [engine.submit(request) for request in (requests[3], requests[0], requests[7], requests[1], requests[5])]
    finished = dict(engine.step())
    for number in (numbers[0], numbers[2], numbers[4]):
        engine.abort(number)
    while engine.has_work:
        finished.update(engine.step())
    assert_equal([finished[numbers[1]], finished[numbers[3]]], want)
    assert engine.num_free_slots == SLOTS and engine.num_free_pages == 1024 // PAGE


@pytest.mark.parametrize("num_drafts", [0, 2])
def test_an_end_token_ends_the_text_where_it_stands(model, prompts, num_drafts):
    engine = make_engine(model, num_drafts)
    [free] = engine.generate([SlotRequest(prompts[3], GREEDY, limit=30)])
    end = free.tokens[10]
    [ended] = engine.generate([SlotRequest(prompts[3], GREEDY, limit=30, end_tokens=[end])])
    assert ended.tokens == free.tokens[: free.tokens.index(end) + 1] and ended.finish_reason == "stop"


@pytest.mark.parametrize("num_drafts", [0, 2])
def test_a_spent_budget_closes_the_think_block(model, prompts, num_drafts):
    engine = make_engine(model, num_drafts)
    closing = [20, 21, END_THINK, 22]
    request = SlotRequest(prompts[2], GREEDY, limit=20, thinking=True, budget=7, closing=closing)
    [done] = engine.generate([request])
    [free] = engine.generate([dataclasses.replace(request, thinking=False)])
    assert END_THINK not in free.tokens[:7], "the model closes the block by itself; choose another prompt"
    assert done.tokens[:7] == free.tokens[:7] and done.tokens[7:11] == closing and len(done.tokens) == 20
    np.testing.assert_array_equal(done.sampling_logprobs[7:11], 0.0)


def test_no_setting_compiles_a_program(model, prompts):
    engine = make_engine(model, 2)
    engine.generate(some_requests(prompts, sampled=True))
    before = decode._cache_size(), prefill._cache_size()
    engine.generate(some_requests(prompts, sampled=False))
    engine.generate([SlotRequest(prompts[4], SAMPLED[3], 9, seed=2**63, end_tokens=[1, 2, 3], thinking=True, budget=3,
                                 closing=[END_THINK])])  # fmt: skip
    assert (decode._cache_size(), prefill._cache_size()) == before


def test_drafts_are_accepted_and_change_the_count_of_steps(model, prompts):
    requests = some_requests(prompts, sampled=False)
    plain, drafted = make_engine(model, 0), make_engine(model, 2)
    plain.generate(requests)
    drafted.generate(requests)
    metrics = drafted.metrics
    assert metrics.generated_tokens == plain.metrics.generated_tokens
    assert 0 <= metrics.accepted_drafts <= metrics.proposed_drafts and metrics.proposed_drafts > 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt": []}, "the prompt has no tokens"),
        ({"prompt": [10**6]}, "token ids from 1000000 to 1000000"),
        ({"limit": 0}, "limit=0; give at least 1"),
        ({"limit": 2000}, "with 2000 new ones it passes the 1024"),
    ],
)
def test_what_could_never_finish_is_refused(model, prompts, change, message):
    engine = make_engine(model, 0)
    with pytest.raises(ValueError, match=message):
        engine.submit(dataclasses.replace(SlotRequest(prompts[0], GREEDY, limit=4), **change))
    assert not engine.has_work


@pytest.mark.parametrize("name", ["slots", "cache_tokens", "page_size", "chunk", "steps_per_call"])
def test_sizes_out_of_range_are_refused(model, name):
    sizes = {"slots": 2, "cache_tokens": 64} | {name: 0}
    with pytest.raises(ValueError, match=f"{name}=0; give at least 1"):
        SlotEngine(model, marks=(THINK, END_THINK), **sizes)
