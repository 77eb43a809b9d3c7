"""Many requests at once, with everything that can happen around one: full size, so slow."""

import random

import numpy as np
import pytest

from qwen35_jax.inference.decode import decode
from qwen35_jax.inference.prefill import prefill
from qwen35_jax.inference.sampling import SamplingParams
from tests.inference.engines import SAMPLED, THINK, assert_is_idle, make_engine

SIZES = {"slots": 8, "page_size": 16, "prefill_chunk": 64, "steps_per_call": 8}
LENGTH = 640


@pytest.fixture(scope="module")
def crowd(model):
    """64 prompts of 1 to 400 tokens, and how many tokens follow each: 1 to 200."""
    rng = np.random.default_rng(7)
    lengths, limits = (rng.permutation(np.geomspace(1, most, 64).round().astype(int)) for most in (400, 200))
    return [rng.integers(30, 500, length).tolist() for length in lengths], limits.tolist()


@pytest.mark.soak
@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_greedy_text_of_64_prompts_is_what_the_model_finds_most_likely(model, crowd, drafts):
    prompts, limits = crowd
    engine = make_engine(model, drafts, cache_tokens=8 * LENGTH, poison=True, **SIZES)
    done = engine.generate(prompts, sampling=SamplingParams(ignore_end=True), max_new_tokens=limits)
    ties = 0
    for start in range(0, 64, 8):
        texts = np.zeros((8, LENGTH), np.int32)
        for row, place in enumerate(range(start, start + 8)):
            tokens = prompts[place] + done[place].token_ids
            texts[row, : len(tokens)] = tokens
        logits = np.asarray(model.logits(texts))
        for row, place in enumerate(range(start, start + 8)):
            tokens, limit = done[place].token_ids, limits[place]
            assert len(tokens) == limit
            own = logits[row, len(prompts[place]) - 1 :][:limit]
            # Another order of sums may choose between two words that are this close.
            assert np.all(own.max(axis=-1) - own[np.arange(limit), tokens] < 1e-4)
            ties += int(np.sum(own.argmax(axis=-1) != tokens))
    assert ties < 5
    assert_is_idle(engine)


@pytest.mark.parametrize("drafts", [pytest.param(0, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.slow)])
def test_a_request_is_the_same_whatever_happens_around_it(model, crowd, drafts):
    """Others join, leave, are aborted, preempted and forked; all free memory holds NaN; every slot gets its turn."""
    prompts, limits = crowd
    # The watched requests: some share their beginning with others of the crowd.
    watched = [(prompts[i], SAMPLED[i % 4], limits[i], i) for i in range(0, 24, 2)]
    watched += [([*prompts[3][:5], *range(40, 140), 33 + i], SAMPLED[i], 60, 100 + i) for i in range(4)]
    # Room for one of the longest: requests are preempted again and again.
    engine = make_engine(model, drafts, cache_tokens=640, poison=True, **SIZES)

    def submit(prompt, sampling, limit, seed):
        return engine.submit(prompt, sampling=sampling, max_new_tokens=limit, seed=seed)

    def finish(numbers):
        done = {}
        while len(done) < len(numbers):
            done |= {event.id: event.completion for event in engine.step() if event.id in numbers}
        return [done[number] for number in numbers]

    alone = [finish([submit(*request)])[0] for request in watched]
    assert engine.metrics.preemptions == 0 and engine.metrics.forks == 0
    chance, slots_seen = random.Random(3), set()
    numbers, others, done = {}, [], {}
    waiting = list(enumerate(watched)) * 2
    chance.shuffle(waiting)
    while len(done) < 2 * len(watched):
        for _ in range(chance.randrange(4)):
            if waiting:
                place, request = waiting.pop()
                numbers[submit(*request)] = place
            other = chance.randrange(64)
            beginning = watched[-1][0][:105] if chance.random() < 0.3 else prompts[other]
            others.append(submit([*beginning, 30 + other], SAMPLED[other % 4], limits[other], other))
        if others and chance.random() < 0.7:
            engine.abort(others.pop(chance.randrange(len(others))))
        for tenant in filter(None, engine._runner.scheduler.tenants):
            if tenant.request.number in numbers:
                slots_seen.add(tenant.slot)
        done |= {event.id: event.completion for event in engine.step() if event.id in numbers}
    while engine.has_work:
        engine.step()
    # Eight short ones at once, so that each of them sits in several slots.
    short = [place for place, (prompt, _, limit, _) in enumerate(watched) if len(prompt) + limit < 70]
    for shift in range(8):
        together = {
            submit(*watched[short[(i + shift) % len(short)]]): short[(i + shift) % len(short)] for i in range(8)
        }
        engine.step()
        slots_seen |= {tenant.slot for tenant in engine._runner.scheduler.tenants if tenant is not None}
        numbers |= together
        done |= dict(zip(together, finish(together), strict=True))
    for number, completion in done.items():
        assert completion == alone[numbers[number]]
    assert slots_seen == set(range(8))
    assert engine.metrics.preemptions > 0 and engine.metrics.forks > 0 and engine.metrics.finished["aborted"] > 0
    assert_is_idle(engine)


@pytest.mark.soak
@pytest.mark.parametrize("drafts", [0, 2])
def test_a_then_b_then_a_under_full_occupancy(model, crowd, drafts):
    prompts, limits = crowd
    engine = make_engine(model, drafts, cache_tokens=8 * LENGTH, **SIZES)

    def run(begin):
        chosen = slice(begin, begin + 16)
        sampling = [SAMPLED[i % 4] for i in range(16)]
        return engine.generate(prompts[chosen], sampling=sampling, max_new_tokens=limits[chosen], seed=5)

    first, other = run(0), run(16)
    assert run(0) == first and run(16) == other


@pytest.mark.slow
def test_500_mixed_requests_compile_each_program_once(model, crowd):
    prompts, limits = crowd
    chance = random.Random(0)

    def settings() -> SamplingParams:
        return SamplingParams(
            temperature=chance.choice([0.0, 0.6, 1.0, 1.7]),
            top_k=chance.choice([0, 1, 20, 100]),
            top_p=chance.choice([1.0, 0.9, 0.3]),
            min_p=chance.choice([0.0, 0.1]),
            presence_penalty=chance.choice([0.0, 1.5]),
            frequency_penalty=chance.choice([0.0, -0.5]),
            repetition_penalty=chance.choice([1.0, 1.2]),
            logit_bias={chance.randrange(512): 1.0 for _ in range(chance.choice([0, 0, 5]))},
            stop=chance.choice([(), ("7 7 ", "8 ")]),
            stop_token_ids=tuple(chance.sample(range(512), chance.choice([0, 3]))),
            ignore_end=chance.random() < 0.5,
            thinking_budget=chance.choice([None, 0, 7]),
            budget_close=chance.choice(["hard", "sentence"]),
            detect_loops=chance.random() < 0.3,
            logprobs=chance.choice([None, 0, 5]),
        )

    engine = make_engine(model, 2, cache_tokens=640, **SIZES)
    # Another test may have compiled the same programs in this process.
    decode.clear_cache()
    prefill.clear_cache()
    several = [prompts[i % 64] + ([THINK] if chance.random() < 0.5 else []) for i in range(500)]
    most = [min(limits[chance.randrange(64)], 40) for _ in several]
    done = engine.generate(several, sampling=[settings() for _ in several], max_new_tokens=most)
    assert {completion.finish_reason for completion in done} >= {"stop", "length", "budget"}
    # One for whole chunks and one for short rests.
    assert (decode._cache_size(), prefill._cache_size()) == (1, 2)
    assert_is_idle(engine)
