"""What ends a completion, what is told of it while it is written, and what may steer it."""

import dataclasses

import numpy as np
import pytest

from qwen35_jax.inference.sampling import SamplingParams
from tests.inference.engines import (
    END_THINK,
    LIMITS,
    MIXED,
    SAMPLED,
    THINK,
    Numbers,
    assert_is_idle,
    finish,
    make_engine,
)


@pytest.mark.parametrize("drafts", [0, 2])
def test_an_end_token_ends_the_text_where_it_stands(model, prompts, drafts):
    engine = make_engine(model, drafts)
    [free] = engine.generate([prompts[3]], max_new_tokens=30)
    end = free.token_ids[10]
    first = free.token_ids.index(end)
    [ended] = engine.generate([prompts[3]], sampling=SamplingParams(stop_token_ids=(end,)), max_new_tokens=30)
    assert ended.token_ids == free.token_ids[: first + 1] and ended.finish_reason == "stop"
    engine.tokenizer = Numbers((end, 1))
    [ended, on] = engine.generate(
        [prompts[3]] * 2, sampling=[SamplingParams(), SamplingParams(ignore_end=True)], max_new_tokens=30
    )
    assert ended.token_ids == free.token_ids[: first + 1] and on.token_ids == free.token_ids


@pytest.mark.parametrize(
    "sampling, closing",
    [
        (SamplingParams(thinking_budget=7, logprobs=0), [END_THINK]),
        (SamplingParams(thinking_budget=7, budget_close="sentence", logprobs=0), [20, 21, END_THINK, 22]),
    ],
)
@pytest.mark.parametrize("drafts", [0, 2])
def test_a_spent_budget_closes_the_think_block(model, prompts, drafts, sampling, closing):
    engine = make_engine(model, drafts)
    prompt = [*prompts[2], THINK]
    [free, done] = engine.generate([prompt] * 2, sampling=[SamplingParams(), sampling], max_new_tokens=20)
    assert END_THINK not in free.token_ids[:7], "the model closes the block by itself; choose another prompt"
    assert done.token_ids[:7] == free.token_ids[:7] and done.token_ids[7 : 7 + len(closing)] == closing
    assert [x.sampling for x in done.logprobs[7 : 7 + len(closing)]] == [0.0] * len(closing)
    assert len(done.token_ids) == 20 and done.finish_reason == "length" and done.closed_by_budget
    assert not free.closed_by_budget and free.answer == ""
    [ended] = engine.generate(
        [prompt],
        sampling=SamplingParams(
            thinking_budget=7, budget_close=sampling.budget_close, stop_token_ids=(done.token_ids[-1],)
        ),
        max_new_tokens=20,
    )
    assert ended.finish_reason == "budget"


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(model, prompts):
    engine = make_engine(model, 2)
    [free] = engine.generate([prompts[3]], max_new_tokens=30)
    a, b = free.token_ids[9:11]
    stop = f"{a} {b} "
    stopping = SamplingParams(stop=(stop, "never"))
    [ended] = engine.generate([prompts[3]], sampling=stopping, max_new_tokens=30)
    assert ended.finish_reason == "stop" and ended.answer == ended.text == free.answer[: free.answer.index(stop)]
    streamed = list(engine.stream(prompts[3], sampling=stopping, max_new_tokens=30))
    assert "".join(token.text for token in streamed) == ended.answer
    assert [token.id for token in streamed] == ended.token_ids
    # What may become a stop string waits, and is told where the request is taken back.
    number = engine.submit(
        prompts[3], sampling=SamplingParams(stop=(f"{free.answer}never",)), max_new_tokens=30, stream=True
    )
    assert not any(event.tokens for _ in range(4) for event in engine.step())
    last = engine.abort(number)
    assert "".join(token.text for token in last.tokens) == last.completion.answer
    assert last.completion.answer and free.answer.startswith(last.completion.answer)
    # In a thought it is a text like any other.
    thinking = [*prompts[3], THINK]
    [thought] = engine.generate([thinking], max_new_tokens=30)
    a, b = thought.token_ids[4:6]
    [again] = engine.generate([thinking], sampling=SamplingParams(stop=(f"{a} {b} ",)), max_new_tokens=30)
    assert again.token_ids == thought.token_ids
    assert_is_idle(engine)


def test_a_stream_tells_the_tokens_of_generate(model, prompts):
    engine = make_engine(model, 2)
    [whole] = engine.generate(prompts[:1], sampling=SAMPLED[1], max_new_tokens=12, seed=[5])
    other = engine.submit(prompts[2], max_new_tokens=9)
    first, second = (engine.stream(prompts[0], sampling=SAMPLED[1], max_new_tokens=12, seed=5) for _ in range(2))
    pairs = list(zip(first, second, strict=True))
    assert all(a == b for a, b in pairs)
    assert [token.id for token, _ in pairs] == whole.token_ids
    assert [token.logprobs for token, _ in pairs] == whole.logprobs
    assert "".join(token.text for token, _ in pairs) == whole.text
    assert list(finish(engine)) == [other]
    left = engine.stream(prompts[3], max_new_tokens=50)
    next(left)
    left.close()
    assert_is_idle(engine)


def test_a_text_that_repeats_itself_ends_if_one_asks_for_it(model, prompts):
    engine = make_engine(model, 2)
    always = SamplingParams(logit_bias={33: 100.0}, detect_loops=True)
    [done] = engine.generate([prompts[0]], sampling=always, max_new_tokens=400)
    assert done.finish_reason == "loop" and done.token_ids == [33] * 256
    [done] = engine.generate([prompts[0]], sampling=dataclasses.replace(always, detect_loops=False), max_new_tokens=300)
    assert done.finish_reason == "length" and len(done.token_ids) == 300


class Digits:
    """A grammar: so many tokens, each one below the one before."""

    def __init__(self, length: int):
        self.left, self.last = length, 400

    @property
    def finished(self):
        return not self.left

    def mask(self):
        bits = np.zeros(512, np.uint8)
        bits[: self.last] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token_id):
        assert token_id < self.last
        self.left, self.last = self.left - 1, token_id


@pytest.mark.parametrize("cache_tokens", [1024, 128])
def test_a_grammar_allows_its_tokens_only(model, prompts, cache_tokens):
    engine = make_engine(model, 2, cache_tokens=cache_tokens)
    [want] = engine.generate([prompts[3]], sampling=MIXED[3], max_new_tokens=LIMITS[3], seed=[3])
    free = engine.submit(prompts[3], sampling=MIXED[3], max_new_tokens=LIMITS[3], seed=3)
    strict = engine.submit(prompts[2], max_new_tokens=30, grammar=Digits(4), sampling=SamplingParams(temperature=2.0))
    done = finish(engine)
    assert done[free] == want
    tokens = done[strict].token_ids
    assert len(tokens) == 4 and tokens == sorted(tokens, reverse=True) and done[strict].finish_reason == "stop"
