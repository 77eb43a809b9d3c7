"""Generation against the whole model run over the whole text."""

import dataclasses

import jax
import numpy as np
import pytest

from qwen35_jax.hf.load import load
from qwen35_jax.inference import engine as engine_module
from qwen35_jax.inference.engine import Completion, Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing import Tokenizer
from qwen35_jax.sharding import make_mesh
from tests.reference import reference_model, write_checkpoint

NEW_TOKENS = 12
GREEDY = SamplingParams()
RANDOM = SamplingParams(temperature=1.0, top_k=50, top_p=0.9)


@dataclasses.dataclass
class Numbers(Tokenizer):
    """A tokenizer whose text is its token ids; the model's first tokens end nothing by default."""

    eos_token_ids: tuple[int, ...] = (510, 511)
    pad_token_id: int = 511

    def token_id(self, token):
        return {"<think>": 508, "</think>": 509}[token]

    def decode(self, ids, *, skip_special_tokens=True):
        return " ".join(str(token) for token in ids if not (skip_special_tokens and token in self.eos_token_ids))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 500, length).tolist() for length in (5, 1, 14, 16, 9)]


@pytest.fixture(scope="module")
def greedy(model, prompts) -> list[Completion]:
    return Engine(model, Numbers(), max_batch=4).generate(prompts, sampling=GREEDY, max_new_tokens=NEW_TOKENS)


def whole_logits(model, prompts, completions) -> list[np.ndarray]:
    """For each completion, the logits of its tokens from one forward over prompt and completion."""
    input_ids, segment_ids = np.zeros((2, 5, 64), np.int32)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        text = prompt + completion.token_ids
        input_ids[i, : len(text)], segment_ids[i, : len(text)] = text, 1
    logits = np.asarray(model.logits(input_ids, segment_ids))
    return [
        logits[i, len(prompt) - 1 : len(prompt) - 1 + len(completion.token_ids)]
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def ids(completions) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def test_greedy_is_the_argmax_of_the_whole_forward(model, prompts, greedy):
    for completion, logits in zip(greedy, whole_logits(model, prompts, greedy), strict=True):
        assert completion.finish_reason == "length"
        assert completion.token_ids == logits.argmax(-1).tolist()
        assert completion.text == " ".join(map(str, completion.token_ids))


@pytest.mark.parametrize("sampling", [GREEDY, RANDOM])
def test_a_prompt_alone_gives_what_it_gives_in_a_batch(model, prompts, sampling):
    together, alone = (
        Engine(model, Numbers(), max_batch=size).generate(prompts, sampling=sampling, max_new_tokens=NEW_TOKENS)
        for size in (4, 1)
    )
    assert together == alone


def test_seeds_choose_the_sample(model, prompts, greedy):
    engine = Engine(model, Numbers(), max_batch=4)
    first, again, other = (
        engine.generate(prompts, sampling=RANDOM, max_new_tokens=NEW_TOKENS, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert all(a != b for a, b in zip(ids(first), ids(other), strict=True))
    assert all(a != b for a, b in zip(ids(first), ids(greedy), strict=True))


def test_equal_prompts_draw_different_samples(model):
    engine = Engine(model, Numbers(), max_batch=4)
    completions = engine.generate([[1, 2, 3]] * 4, sampling=RANDOM, max_new_tokens=NEW_TOKENS)
    assert len({completion.text for completion in completions}) == 4


def test_stops_at_an_end_token_and_reports_each_prompt_once(model, prompts, greedy):
    stops = (greedy[0].token_ids[3], greedy[2].token_ids[0])
    engine, reported = Engine(model, Numbers(stops), max_batch=4), {}
    completions = engine.generate(
        prompts,
        sampling=GREEDY,
        max_new_tokens=NEW_TOKENS,
        on_finish=lambda number, completion: reported.update({number: completion}),
    )
    for completion, free in zip(completions, greedy, strict=True):
        stop = next((i for i, token in enumerate(free.token_ids) if token in stops), None)
        want = free.token_ids if stop is None else free.token_ids[: stop + 1]
        assert completion.token_ids == want
        assert completion.finish_reason == ("length" if stop is None else "stop")
    assert reported == dict(enumerate(completions))
    assert str(stops[0]) not in completions[0].text.split()


def test_stream_equals_generate(model, prompts):
    engine = Engine(model, Numbers(), max_batch=1)
    whole = engine.generate(prompts[:1], sampling=RANDOM, max_new_tokens=NEW_TOKENS, seed=5)
    streamed = list(engine.stream(prompts[0], sampling=RANDOM, max_new_tokens=NEW_TOKENS, seed=5))
    assert streamed == whole[0].token_ids


def test_a_growing_state_changes_nothing(model, prompts, greedy, monkeypatch):
    engine = Engine(model, Numbers(), max_batch=1)
    monkeypatch.setattr(engine_module, "_FIRST_SLOTS", 2)
    assert engine.generate(prompts[:1], sampling=GREEDY, max_new_tokens=NEW_TOKENS) == greedy[:1]


def test_presence_penalty_follows_its_definition(model, prompts):
    engine = Engine(model, Numbers(), max_batch=4)
    params = SamplingParams(presence_penalty=2.0)
    completions = engine.generate(prompts[:4], sampling=params, max_new_tokens=NEW_TOKENS)
    for completion, logits in zip(completions, whole_logits(model, prompts[:4], completions), strict=True):
        for step, token in enumerate(completion.token_ids):
            penalized = logits[step].copy()
            penalized[completion.token_ids[:step]] -= 2.0
            assert token == penalized.argmax()


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_a_split_model_generates_the_same(make_model, prompts, greedy):
    engine = Engine(make_model(make_mesh(fsdp=2, tensor=2)), Numbers(), max_batch=4)
    assert engine.generate(prompts[:4], sampling=GREEDY, max_new_tokens=NEW_TOKENS) == greedy[:4]


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "message"),
    [([], 4, "prompt 1 has no tokens"), ([3, 512], 4, "512.*tokenizer"), ([3, -1], 4, "-1"),
     ([3] * 4000, 97, "4096 positions"), ([3], 0, "max_new_tokens=0")],
)  # fmt: skip
def test_wrong_prompts_are_named(model, prompt, max_new_tokens, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, Numbers()).generate([[1], prompt], sampling=GREEDY, max_new_tokens=max_new_tokens)


def test_no_prompts_give_no_completions_and_an_empty_batch_is_refused(model):
    assert Engine(model, Numbers()).generate([], sampling=GREEDY, max_new_tokens=1) == []
    with pytest.raises(ValueError, match="max_batch=0"):
        Engine(model, Numbers(), max_batch=0)


def test_sizes_are_rounded_up_to_few_different_ones():
    sizes = {engine_module._round_up(size) for size in range(1, 5000)}
    assert all(engine_module._round_up(size) >= size for size in range(1, 5000))
    assert len(sizes) <= 18


def test_greedy_equals_transformers(model, prompts, tmp_path):
    pytest.importorskip("transformers", reason="compares with transformers")
    import torch

    reference = reference_model(model.config)
    write_checkpoint(reference, tmp_path)
    completions = Engine(load(tmp_path, "float32"), Numbers(), max_batch=4).generate(
        prompts[:4], sampling=GREEDY, max_new_tokens=NEW_TOKENS
    )
    for prompt, completion in zip(prompts[:4], completions, strict=True):
        with torch.no_grad():
            text = reference.generate(
                torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=511
            )
        assert completion.token_ids == text[0, len(prompt) :].tolist()
