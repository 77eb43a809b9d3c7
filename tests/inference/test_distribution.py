"""Sampling by slot against transformers' logits processors, numpy sorts, and itself beside other slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.inference import distribution as S
from qwen35_jax.inference import verification
from qwen35_jax.inference.sampling import SamplingParams

VOCAB = 97
adjust = jax.jit(S.adjust)
candidates = jax.jit(S.candidates)


def stacked(rows: list[dict]) -> S.Settings:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[S.Settings.row(SamplingParams(**row)) for row in rows])


def random_logits(seed: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * 3).astype(np.float32)


def seen_of(prompt: list[int], output: list[int]) -> np.ndarray:
    held = np.bincount(output, minlength=VOCAB)
    held[prompt] += S.PROMPT
    return held.astype(np.int32)


def test_repetition_penalty_matches_transformers():
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits, prompt, output = random_logits(0, 1, 1, VOCAB), [3, 5, 5], [7, 9, 9]
    got = adjust(
        logits, stacked([{"repetition_penalty": 1.3}]), seen_of(prompt, output)[None], np.zeros((1, 0), np.int32)
    )
    want = processors.RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([prompt + output]), torch.from_numpy(logits[0])
    )
    np.testing.assert_allclose(got[0], want, rtol=1e-6)  # One float32 operation on both sides.


def test_bias_and_penalties_on_the_output_match_numpy():
    logits, output = random_logits(1, 1, 1, VOCAB), [7, 9, 9]
    settings = stacked([{"presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": {0: 4.0, 96: -100.0}}])
    got = adjust(logits, settings, seen_of([3, 9], output)[None], np.zeros((1, 0), np.int32))
    want = logits.copy()
    want[..., 0] += 4
    want[..., 96] -= 100
    want[..., 7] -= 0.5 + 0.25
    want[..., 9] -= 0.5 + 2 * 0.25
    np.testing.assert_allclose(got, want, rtol=1e-6)  # The subtractions may round once more on one side.


def test_a_position_counts_the_drafts_before_it_as_output():
    logits, drafts = random_logits(2, 1, 3, VOCAB), [9, 11]
    settings = stacked([{"presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": 1.2}])
    got = adjust(logits, settings, seen_of([3], [9])[None], np.asarray([drafts], np.int32))
    for t in range(3):
        seen = seen_of([3], [9, *drafts[:t]])[None]
        alone = adjust(logits[:, t : t + 1], settings, seen, np.zeros((1, 0), np.int32))
        np.testing.assert_array_equal(got[:, t], alone[:, 0])
    assert got[0, 1, 11] == logits[0, 1, 11] and got[0, 2, 11] != logits[0, 2, 11]


@pytest.mark.parametrize("size", [5, 64, VOCAB, 10_001])
def test_candidates_are_the_first_of_a_stable_sort(size):
    rng = np.random.default_rng(size)
    # Nine different values: nearly every edge is a tie, also between groups and with a zero of either sign.
    logits = rng.choice(np.asarray([-np.inf, -2, -1, -0.0, 0.0, 1, 2, 3, 4], np.float32), (2, 3, size))
    logits[0] = rng.normal(size=(3, size))
    logits[1, 2] = -np.inf
    values, ids = candidates(logits)
    want = np.argsort(-logits, axis=-1, kind="stable")[..., : S.CANDIDATES]
    np.testing.assert_array_equal(ids, want)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, want, axis=-1))


TRUNCATIONS = [
    {"temperature": 1.0, "top_k": 20, "top_p": 0.95},
    {"temperature": 0.6, "top_k": 5, "top_p": 0.8, "min_p": 0.3},
    {"temperature": 0.6, "top_k": 64},
    {"temperature": 1.5, "top_k": 1},
    {"temperature": 1.0, "top_k": 20, "top_p": 1e-6},
    {"temperature": 1.0},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 2.0, "min_p": 0.05},
    {"temperature": 2.0, "top_k": 80, "top_p": 0.99, "min_p": 0.01},
    {"temperature": 3.0, "top_k": 70},
    {"temperature": 0.6, "top_k": 500, "top_p": 1e-6},
]


def test_truncation_matches_transformers():
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    settings, logits = stacked(TRUNCATIONS), random_logits(4, len(TRUNCATIONS), VOCAB)
    whole = np.asarray(jax.jit(S.all_probabilities)(logits, settings))
    values, ids = candidates(logits)
    few = np.zeros_like(whole)
    np.put_along_axis(few, np.asarray(ids), np.asarray(S.candidate_probabilities(values, settings)), axis=-1)
    got = np.where(np.asarray(settings.needs_all_tokens)[:, None], whole, few)
    for row, numbers in enumerate(TRUNCATIONS):
        want = torch.from_numpy(logits[row : row + 1])
        want = processors.TemperatureLogitsWarper(numbers["temperature"])(None, want)
        if "top_k" in numbers:
            want = processors.TopKLogitsWarper(numbers["top_k"])(None, want)
        if "top_p" in numbers:
            want = processors.TopPLogitsWarper(numbers["top_p"])(None, want)
        if "min_p" in numbers:
            want = processors.MinPLogitsWarper(numbers["min_p"])(None, want)
        want = want.softmax(-1).numpy()[0]
        np.testing.assert_array_equal(got[row] > 0, want > 0)
        np.testing.assert_allclose(got[row], want, rtol=1e-5, err_msg=str(numbers))  # float32 sums in another order.


def test_what_a_slot_draws_depends_neither_on_the_others_nor_on_its_place():
    penalties = {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.3, "logit_bias": {4: 2.0}}
    kinds = [{}, {"temperature": 0.6, "top_k": 20, **penalties}, *TRUNCATIONS[5:9], {"temperature": 1.0, **penalties}]
    slots, (T, K) = len(kinds), (3, 2)
    logits, q_logits = random_logits(5, slots, T, VOCAB), random_logits(6, slots, VOCAB)
    rng = np.random.default_rng(7)
    seen = rng.choice(np.asarray([0, 1, S.PROMPT, S.PROMPT + 2], np.int32), (slots, VOCAB))
    seeds = rng.integers(0, 2**32, (slots, 2), dtype=np.uint32)

    @jax.jit
    def step(settings: S.Settings, logits, q_logits, seen, seeds):
        positions = 9 + jnp.tile(jnp.arange(T), (slots, 1))
        draws = [verification.draw_draft(q_logits, settings, seeds, positions[:, i]) for i in range(K)]
        tokens, ids, probs = (jnp.stack(part, axis=1) for part in zip(*draws, strict=True))
        drafts = verification.Drafts(tokens, ids, probs, jnp.full(slots, K))
        adjusted = S.adjust(logits, settings, seen, tokens)
        forced = jnp.full((slots, T), -1)
        return adjusted, drafts, verification.verify(logits, drafts, forced, settings, seeds, positions, seen)

    crowd = step(stacked(kinds), logits, q_logits, seen, seeds)
    for slot, kind in enumerate(kinds):
        others = [{}] * slots  # All greedy: no branch runs for them.
        settings = stacked([*others[:slot], kind, *others[slot + 1 :]])
        alone = step(settings, logits, q_logits, seen, seeds)
        for got, want in zip(jax.tree.leaves(crowd), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(got[slot], want[slot], err_msg=str(kind))
    turned = [np.roll(part, 1, axis=0) for part in (logits, q_logits, seen, seeds)]
    moved = step(stacked(kinds[-1:] + kinds[:-1]), *turned)
    for got, want in zip(jax.tree.leaves(moved), jax.tree.leaves(crowd), strict=True):
        np.testing.assert_array_equal(got, np.roll(want, 1, axis=0))


def test_log_probabilities_are_those_of_the_logits():
    logits, tokens = random_logits(8, 2, 3, VOCAB), np.asarray([[0, 5, 96], [1, 2, 3]], np.int32)
    chosen, top, ids = jax.jit(S.log_probabilities, static_argnums=2)(logits, tokens, 4)
    want = np.asarray(jax.nn.log_softmax(logits))
    order = np.argsort(-want, axis=-1)[..., :4]
    np.testing.assert_array_equal(ids, order)
    # float32 sums of 97 terms in another order.
    np.testing.assert_allclose(chosen, np.take_along_axis(want, tokens[..., None], axis=-1)[..., 0], rtol=1e-5)
    np.testing.assert_allclose(top, np.take_along_axis(want, order, axis=-1), rtol=1e-5)


def test_empty_settings_are_greedy_in_every_slot():
    got, want = S.Settings.empty(3), stacked([{}] * 3)
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype
