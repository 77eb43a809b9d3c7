"""The engine: what it writes is what the model says, and a request's result is the same in any crowd."""

import dataclasses

import jax
import numpy as np
import pytest

from qwen35_jax.inference.decode import decode
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.prefill import prefill
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.sharding import make_mesh
from tests.inference.engines import GREEDY, LIMITS, MIXED, THINK, Numbers, assert_is_idle, finish, make_engine


@pytest.mark.parametrize(
    "drafts", [0, pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.soak)]
)
def test_greedy_text_is_what_the_model_finds_most_likely(model, prompts, drafts):
    engine = make_engine(model, drafts, poison=True)
    done = engine.generate(prompts, sampling=GREEDY, max_new_tokens=LIMITS)
    for prompt, limit, completion in zip(prompts, LIMITS, done, strict=True):
        tokens = completion.token_ids
        assert len(tokens) == limit and completion.finish_reason == "length" and completion.logprobs is not None
        text = np.zeros((1, 128), np.int32)
        text[0, : len(prompt) + limit] = prompt + tokens
        logits = np.asarray(model.logits(text))[0, len(prompt) - 1 :][:limit].astype(np.float64)
        # Another order of sums may choose between two words that are this close.
        assert np.all(logits.max(axis=-1) - logits[np.arange(limit), tokens] < 1e-4)
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        told = completion.logprobs
        np.testing.assert_allclose([x.model for x in told], logprobs[np.arange(limit), tokens], rtol=1e-4, atol=1e-4)
        best = [[value for _, value in x.top] for x in told]
        np.testing.assert_allclose(best, -np.sort(-logprobs, axis=-1)[:, :3], rtol=1e-4, atol=1e-4)
    assert_is_idle(engine)


@pytest.mark.parametrize("drafts", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_request_has_the_same_bits_alone_and_in_a_crowd(model, prompts, drafts):
    alone_in = make_engine(model, drafts)
    seeds = list(range(8))
    alone = [
        alone_in.generate([prompt], sampling=sampling, max_new_tokens=limit, seed=[seed])[0]
        for prompt, sampling, limit, seed in zip(prompts, MIXED, LIMITS, seeds, strict=True)
    ]
    crowd = make_engine(model, drafts, poison=True)
    assert crowd.generate(prompts, sampling=MIXED, max_new_tokens=LIMITS, seed=seeds) == alone
    backwards = crowd.generate(prompts[::-1], sampling=MIXED[::-1], max_new_tokens=LIMITS[::-1], seed=seeds[::-1])
    assert backwards[::-1] == alone
    assert_is_idle(crowd)


@pytest.mark.parametrize("drafts", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_preempted_request_comes_out_with_the_same_bits(model, prompts, drafts):
    """There is room for about two requests, so the younger ones give their pages back again and again."""
    narrow = make_engine(model, drafts, cache_tokens=128, poison=True)
    seeds = list(range(8))
    alone = [
        narrow.generate([prompt], sampling=sampling, max_new_tokens=limit, seed=[seed])[0]
        for prompt, sampling, limit, seed in zip(prompts, MIXED, LIMITS, seeds, strict=True)
    ]
    assert narrow.metrics.preemptions == 0
    assert narrow.generate(prompts, sampling=MIXED, max_new_tokens=LIMITS, seed=seeds) == alone
    assert narrow.metrics.preemptions > 0
    assert_is_idle(narrow)


def test_an_aborted_request_leaves_no_trace(model, prompts):
    engine = make_engine(model, 2)

    def submit(i):
        return engine.submit(prompts[i], sampling=MIXED[i], max_new_tokens=LIMITS[i], seed=i)

    submit(0), submit(1)
    want = list(finish(engine).values())
    numbers = [submit(i) for i in (3, 0, 7, 1, 5)]
    for _ in range(2):
        engine.step()
    aborted = [engine.abort(numbers[i]) for i in (0, 2, 4)]
    assert [event.completion.finish_reason for event in aborted] == ["aborted"] * 3
    assert engine.abort(numbers[0]) is None and engine.abort(10**9) is None
    done = finish(engine)
    assert sorted(map(repr, done.values())) == sorted(map(repr, want))
    assert engine.metrics.finished["aborted"] == 3
    assert_is_idle(engine)


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("positions", [64, 4096])
def test_requests_as_large_as_the_memory_or_the_models_positions_finish(make_model, drafts, positions):
    engine = make_engine(make_model(make_mesh(), max_position_embeddings=positions), drafts, cache_tokens=72)
    size = engine.max_length
    assert size == min(positions, 72)
    text = [30 + i for i in range(size)]
    [completion] = engine.generate([text[:-1]], max_new_tokens=1)
    assert len(completion.token_ids) == 1
    [whole] = engine.score([text[:4]], [text[4:]])
    [part] = engine.score([text[:4]], [text[4:-8]])
    np.testing.assert_array_equal(whole[:-8], part)
    assert_is_idle(engine)


def test_a_long_prompt_can_be_taken_back_while_it_is_read(model):
    engine = make_engine(model, prefill_chunk=8)
    number = engine.submit([30 + i % 400 for i in range(1000)], max_new_tokens=8)
    assert engine.step() == [] and 0 < engine.metrics.prefilled_tokens < 600
    assert engine.abort(number).completion.token_ids == []
    assert_is_idle(engine)


@pytest.mark.parametrize("drafts", [0, 2])
def test_forks_have_the_same_bits_as_those_who_read_alone(model, prompts, drafts):
    """Eight requests share 40 tokens: whole chunks and pages, or with the last chunk and half a page."""
    common = prompts[3]
    several = [[*common, *prompts[i][:5]] for i in range(4)] + [common] * 4
    alone_in, engine = make_engine(model, drafts), make_engine(model, drafts, poison=True)
    alone = [
        alone_in.generate([prompt], sampling=sampling, max_new_tokens=12, seed=[i])[0]
        for i, (prompt, sampling) in enumerate(zip(several, MIXED, strict=True))
    ]
    assert engine.generate(several, sampling=MIXED, max_new_tokens=12, seed=list(range(8))) == alone
    assert engine.metrics.forks == 7
    assert engine.metrics.prefilled_tokens < alone_in.metrics.prefilled_tokens / 2
    assert_is_idle(engine)


def test_scores_are_the_log_probabilities_of_the_model(model, prompts):
    engine = make_engine(model, 0, poison=True)
    pairs = [(prompts[i], prompts[j][:n]) for i, j, n in [(3, 5, 9), (3, 7, 4), (3, 2, 1), (0, 1, 3), (7, 3, 40)]]
    several = engine.score(*zip(*pairs, strict=True))
    for (prompt, continuation), scores in zip(pairs, several, strict=True):
        text = np.zeros((1, 160), np.int32)
        text[0, : len(prompt) + len(continuation)] = prompt + continuation
        logits = np.asarray(model.logits(text))[0, len(prompt) - 1 :][: len(continuation)].astype(np.float64)
        want = logits[np.arange(len(continuation)), continuation] - np.log(np.exp(logits).sum(axis=-1))
        np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-4)
        [alone] = make_engine(model, 0).score([prompt], [continuation])
        np.testing.assert_array_equal(scores, alone)
    assert engine.metrics.forks == 2 and engine.metrics.scored_tokens == 57
    assert_is_idle(engine)


def test_scores_say_which_tokens_greedy_decoding_takes(model, prompts):
    engine = make_engine(model, 0)
    taken = engine.generate(prompts[:4], sampling=SamplingParams(ignore_end=True), max_new_tokens=9)
    others = [[*completion.token_ids[:5], (completion.token_ids[5] + 1) % 100] for completion in taken]
    for scores in engine.score_tokens(prompts[:4], [completion.token_ids for completion in taken]):
        assert scores.greedy.tolist() == [True] * 9
    for scores in engine.score_tokens(prompts[:4], others):
        assert scores.greedy.tolist() == [True] * 5 + [False]


def test_no_setting_compiles_a_program(model, prompts):
    engine = make_engine(model, 2)
    engine.generate(prompts, sampling=MIXED, max_new_tokens=LIMITS)
    before = decode._cache_size(), prefill._cache_size()
    engine.generate(prompts, max_new_tokens=LIMITS)
    engine.generate(
        [[*prompts[4], THINK]],
        sampling=SamplingParams(
            temperature=0.9, stop_token_ids=(1, 2, 3), thinking_budget=3, stop=("8 8 ",), logit_bias={3: 1.0}
        ),
        max_new_tokens=9,
        seed=[2**63],
    )
    assert (decode._cache_size(), prefill._cache_size()) == before


def test_drafts_are_counted(model, prompts):
    plain, drafted = make_engine(model, 0), make_engine(model, 2)
    for engine in (plain, drafted):
        engine.generate([*prompts, [*prompts[0], THINK]], max_new_tokens=20)
    metrics = drafted.metrics
    assert metrics.generated_tokens == plain.metrics.generated_tokens == 180
    assert 0 <= metrics.drafts.accepted <= metrics.drafts.proposed and metrics.drafts.proposed > 0
    assert plain.metrics.drafts.acceptance is None
    for parts in (metrics.by_position, metrics.by_section, metrics.by_length):
        assert sum(part.proposed for part in parts.values()) == metrics.drafts.proposed
        assert sum(part.accepted for part in parts.values()) == metrics.drafts.accepted
    assert 0 in metrics.by_position and set(metrics.by_section) == {"thinking", "answer"}


def test_drafts_from_a_part_of_the_vocabulary_change_no_text(model, prompts):
    whole, part = make_engine(model, 2), make_engine(model, 2, draft_vocabulary=256)
    a, b = (engine.generate(prompts, max_new_tokens=20) for engine in (whole, part))
    assert [x.token_ids for x in a] == [x.token_ids for x in b]


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize(
    "axes", [pytest.param({"fsdp": 2, "tensor": 2}, marks=pytest.mark.slow), {"data": 2, "tensor": 2}]
)
def test_a_split_model_writes_and_scores_the_same(make_model, model, prompts, axes):
    """Two data shards with slots and pages of their own; two devices share out heads and vocabulary."""
    split = make_engine(make_model(make_mesh(**axes)), 2)
    whole = make_engine(model, 2)
    several = [*prompts, *([[*prompts[3], 5]] * 4)]
    sampling = [dataclasses.replace(each, logprobs=None) for each in [*MIXED, *MIXED[:4]]]
    want, got = (
        engine.generate(several, sampling=sampling, max_new_tokens=[*LIMITS, *[12] * 4], seed=list(range(12)))
        for engine in (whole, split)
    )
    assert got == want
    assert split.metrics.forks >= 2 and split.sizes.shards == 2
    compiled = decode._cache_size(), prefill._cache_size()
    assert split.generate(several[:3], sampling=sampling[:3], max_new_tokens=LIMITS[:3], seed=[0, 1, 2]) == want[:3]
    assert (decode._cache_size(), prefill._cache_size()) == compiled
    pairs = [prompts[3]] * 3, [prompts[i] for i in (5, 2, 7)]
    for one, other in zip(split.score(*pairs), whole.score(*pairs), strict=True):
        # Sums over devices have another order.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert_is_idle(split)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt": []}, "prompt 0 has no tokens"),
        ({"prompt": [3, 512]}, "512.*tokenizer"),
        ({"prompt": [3, -1]}, "from -1 to 3"),
        ({"max_new_tokens": 0}, "max_new_tokens=0; give at least 1"),
        ({"max_new_tokens": 2000}, "passes the 1024 tokens that the engine's pages hold"),
        (
            {"sampling": SamplingParams(logit_bias={512: 1.0})},
            "logit_bias names token 512, but the model knows 0 to 511",
        ),
        ({"sampling": SamplingParams(stop_token_ids=(-1,))}, "stop_token_ids names token -1"),
    ],
)
def test_what_could_never_finish_is_refused(model, prompts, change, message):
    engine = make_engine(model, 0)
    with pytest.raises(ValueError, match=message):
        engine.submit(**({"prompt": prompts[0], "max_new_tokens": 4} | change))
    assert not engine.has_work


@pytest.mark.parametrize("name", ["sampling", "max_new_tokens", "seed"])
def test_a_list_has_an_entry_for_each_prompt(model, prompts, name):
    value = {"sampling": [SamplingParams()], "max_new_tokens": [4], "seed": [0]}[name]
    with pytest.raises(ValueError, match=f"{name} has 1 entries for 2 prompts"):
        make_engine(model, 0).generate(prompts[:2], **{"max_new_tokens": 4, name: value})


@pytest.mark.parametrize(
    "sizes, message",
    [
        *(({name: 0}, f"{name}=0; give at least 1") for name in ("slots", "page_size", "prefill_chunk")),
        ({"speculative_tokens": -1}, "speculative_tokens=-1; give 0 to 16"),
        ({"draft_vocabulary": 513}, "draft_vocabulary=513, but the model knows 512 tokens"),
    ],
)
def test_sizes_out_of_range_are_refused(model, sizes, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, Numbers(), **sizes)


def test_no_prompts_give_no_completions(model):
    assert make_engine(model).generate([]) == [] and make_engine(model).score([], []) == []
