"""Sampling against transformers' logits processors and against the distributions themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.inference import sampling as S

VOCAB = 97


def random_logits(seed: int, sequences: int = 3, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(sequences, VOCAB)) * scale).astype(np.float32)


def truncated(logits: np.ndarray, params: S.SamplingParams) -> np.ndarray:
    """The truncated logits laid out over the whole vocabulary."""
    values, token_ids = S.truncate(jnp.asarray(logits), params)
    if token_ids is None:
        return np.asarray(values)
    full = np.full(logits.shape, -np.inf, np.float32)
    np.put_along_axis(full, np.asarray(token_ids), np.asarray(values), axis=-1)
    return full


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.6, 0, 0.3), (0.6, 0, 0.95), (1.0, 0, 1e-6), (1.0, 1, 1.0), (0.6, 5, 0.8), (1.0, 20, 0.95),
     (1.0, 20, 1e-6), (1.0, VOCAB, 0.5), (0.6, VOCAB + 9, 1.0)],
)  # fmt: skip
def test_truncation_matches_transformers(top_k, top_p, temperature):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = random_logits(top_k)
    want = processors.TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits))
    if top_k:
        want = processors.TopKLogitsWarper(top_k)(None, want)
    if top_p < 1:
        want = processors.TopPLogitsWarper(top_p)(None, want)
    got = truncated(logits, S.SamplingParams(temperature, top_k, top_p))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want.numpy()))
    # One division in float32 on both sides.
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


def test_ties_at_the_edge_of_top_p_are_all_kept():
    logits = np.log(np.array([[0.4, 0.2, 0.2, 0.1, 0.1]], np.float32))
    kept = np.isfinite(truncated(logits, S.SamplingParams(1.0, 0, 0.5)))
    np.testing.assert_array_equal(kept, [[True, True, True, False, False]])


def test_the_only_possible_token_is_always_taken():
    logits = np.full((1, VOCAB), -np.inf, np.float32)
    logits[0, 7] = 3.0
    for top_k in (0, 4):
        keys = S.sequence_keys(jax.random.key(0), jnp.arange(1), 0)
        assert S.sample(jnp.asarray(logits), keys, S.SamplingParams(1.0, top_k, 0.9)).tolist() == [7]


@pytest.mark.parametrize("params", [S.SamplingParams(0.8, 10, 0.9), S.SamplingParams(1.3, 0, 0.7)])
def test_frequencies_follow_the_truncated_distribution(params):
    draws = 20_000
    logits = random_logits(11, sequences=1, scale=1.5)
    kept = truncated(logits, params)[0].astype(np.float64)
    want = np.exp(kept - kept.max())
    want /= want.sum()
    keys = S.sequence_keys(jax.random.key(3), jnp.arange(draws), 5)
    tokens = jax.jit(S.sample, static_argnums=2)(jnp.broadcast_to(logits, (draws, VOCAB)), keys, params)
    got = np.bincount(np.asarray(tokens), minlength=VOCAB) / draws
    assert not got[want == 0].any()
    # Five standard errors of a frequency over the draws; a wrong order of the filters is far outside.
    np.testing.assert_array_less(np.abs(got - want), 5 * np.sqrt(want * (1 - want) / draws) + 1e-9)


def test_a_sequence_samples_alike_in_every_batch():
    logits, params = random_logits(2, sequences=4), S.SamplingParams(1.0, 0, 1.0)
    key = jax.random.key(1)
    together = S.sample(jnp.asarray(logits), S.sequence_keys(key, jnp.arange(4), 9), params)
    alone = [
        S.sample(jnp.asarray(logits[i : i + 1]), S.sequence_keys(key, jnp.array([i]), 9), params)[0] for i in range(4)
    ]
    assert together.tolist() == [int(token) for token in alone]


def test_keys_differ_by_sequence_step_and_seed():
    keys = [S.sequence_keys(jax.random.key(seed), jnp.arange(3), step) for seed in range(2) for step in range(3)]
    data = np.concatenate([np.asarray(jax.random.key_data(k)) for k in keys])
    assert len(np.unique(data, axis=0)) == 18


def test_greedy_takes_the_maximum():
    logits = random_logits(4)
    keys = S.sequence_keys(jax.random.key(0), jnp.arange(3), 0)
    np.testing.assert_array_equal(S.sample(jnp.asarray(logits), keys, S.SamplingParams()), logits.argmax(-1))


def test_the_presence_penalty_is_subtracted_once_from_generated_tokens():
    logits = random_logits(5)
    generated = np.zeros(logits.shape, bool)
    generated[1, [3, 4]] = True
    got = S.penalize_presence(jnp.asarray(logits), jnp.asarray(generated), 1.5)
    np.testing.assert_array_equal(got, np.where(generated, logits - np.float32(1.5), logits))


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1},
     {"presence_penalty": 3.0}],
)  # fmt: skip
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        S.SamplingParams(**wrong)
