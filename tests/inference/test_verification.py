"""Speculative sampling by slot: exactness in distribution, forced tokens, masked drafts, no drafts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.inference import distribution, verification
from qwen35_jax.inference.distribution import Settings
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.inference.verification import Drafts

VOCAB, ROWS = 40, 20_000
FIRST = 5  # Position of the first token that is chosen.


def tiled(rows: int, **numbers) -> Settings:
    return jax.tree.map(
        lambda leaf: jnp.tile(leaf, (rows, *[1] * np.ndim(leaf))), Settings.row(SamplingParams(**numbers))
    )


def seeds_of(rows: int) -> jnp.ndarray:
    return jnp.stack([jnp.full(rows, 17, jnp.uint32), jnp.arange(rows, dtype=jnp.uint32)], axis=1)


def no_drafts(rows: int) -> Drafts:
    width = min(distribution.CANDIDATES, VOCAB)
    return Drafts(
        jnp.zeros((rows, 0), jnp.int32),
        jnp.zeros((rows, 0, width), jnp.int32),
        jnp.zeros((rows, 0, width)),
        jnp.zeros(rows, jnp.int32),
    )


@functools.partial(jax.jit, static_argnames="num_drafts")
def draw_and_verify(q_logits, p_logits, seen, valid, settings, num_drafts):
    """One call of the engine where the logits, of the drafting layer too, are looked up by the token before."""
    rows = valid.shape[0]
    seeds, before, parts = seeds_of(rows), jnp.zeros(rows, jnp.int32), []
    for i in range(num_drafts):
        parts.append(verification.draw_draft(q_logits[before], settings, seeds, jnp.full(rows, FIRST + i)))
        before = parts[-1][0]
    drafts = no_drafts(rows)
    if parts:
        drafts = Drafts(*(jnp.stack(part, axis=1) for part in zip(*parts, strict=True)), valid)
    context = jnp.concatenate([jnp.zeros((rows, 1), jnp.int32), drafts.tokens], axis=1)
    positions = jnp.tile(FIRST + jnp.arange(num_drafts + 1), (rows, 1))
    forced = jnp.full((rows, num_drafts + 1), -1)
    all_seen = jnp.tile(seen, (rows, 1))
    return verification.verify(p_logits[context], drafts, forced, settings, seeds, positions, all_seen), drafts


def exact(logits: np.ndarray, count: np.ndarray, prompt: np.ndarray, numbers: dict) -> np.ndarray:
    """The distribution of the next token, by numpy."""
    logits, held = logits.astype(np.float64), (count > 0) | prompt
    repetition = numbers.get("repetition_penalty", 1.0)
    logits = np.where(held, np.where(logits > 0, logits / repetition, logits * repetition), logits)
    logits = logits - numbers.get("frequency_penalty", 0.0) * count - numbers.get("presence_penalty", 0.0) * (count > 0)
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits[order] - logits.max()) / numbers["temperature"])
    weights[numbers.get("top_k", 0) or VOCAB :] = 0
    weights /= weights.sum()
    weights[np.cumsum(weights) - weights >= numbers.get("top_p", 1.0)] = 0
    weights[weights < numbers.get("min_p", 0.0) * weights[0]] = 0
    probabilities = np.zeros(VOCAB)
    probabilities[order] = weights / weights.sum()
    return probabilities


def assert_distributed(observed: np.ndarray, expected: np.ndarray) -> None:
    """Pearson's chi-square on the tokens that are expected at least 5 times; the others count as one."""
    assert observed[expected == 0].sum() == 0
    small = expected < 5
    observed = np.append(observed[~small], observed[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    assert degrees >= 2
    # The statistic's mean is the degrees of freedom and its standard deviation sqrt(2 degrees); different contexts in
    # one sum make both smaller. A right sampler stays below five deviations at nearly every seed, and ours is fixed; a
    # bias that moves 5 % of the mass of 10,000 tokens adds some 10,000 * 0.05 ** 2 * 4 = 100 to the statistic.
    assert np.sum((observed - expected) ** 2 / expected) < degrees + 5 * np.sqrt(2 * degrees)


PENALTIES = {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.3}


@pytest.mark.parametrize("num_drafts", [0, 2])
@pytest.mark.parametrize(
    "numbers",
    [
        {"temperature": 0.6},
        {"temperature": 1.0},
        {"temperature": 0.6, "top_k": 12, "top_p": 0.95, **PENALTIES},
        {"temperature": 1.0, "top_k": 20, "min_p": 0.02, **PENALTIES},
        {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01, **PENALTIES},
    ],
    ids=lambda numbers: "-".join(f"{name}{number}" for name, number in numbers.items()),
)
def test_every_token_has_the_distribution_of_the_model(numbers, num_drafts):
    rng = np.random.default_rng(3)
    p_logits = rng.normal(size=(VOCAB, VOCAB)).astype(np.float32)
    q_logits = (p_logits + rng.normal(size=(VOCAB, VOCAB))).astype(np.float32)
    output, prompt = rng.integers(0, 3, VOCAB) // 2 * 2, rng.random(VOCAB) < 0.3
    seen = jnp.asarray(output + prompt * distribution.PROMPT, jnp.int32)
    valid = jnp.full(ROWS, num_drafts)
    verified, drafts = draw_and_verify(
        # The drafting layer knows no other token.
        q_logits[:, :30],
        p_logits,
        seen,
        valid,
        tiled(ROWS, **numbers),
        num_drafts,
    )
    tokens, count = np.asarray(verified.tokens), np.asarray(verified.count)
    np.testing.assert_array_equal(tokens[:, 0][count > 0], np.asarray(drafts.tokens)[count > 0, :1].ravel())
    for position in range(num_drafts + 1):
        reached = tokens[count >= position]
        assert len(reached) > ROWS / 20
        # Of every context that was emitted: what the model says after it, as often as it was emitted.
        expected = np.zeros(VOCAB)
        for context, number in zip(*np.unique(reached[:, :position], axis=0, return_counts=True), strict=True):
            held = output + np.bincount(context, minlength=VOCAB)
            last = context[-1] if position else 0
            expected += number * exact(p_logits[last], held, prompt, numbers)
        assert_distributed(np.bincount(reached[:, position], minlength=VOCAB), expected)
    newest = exact(p_logits[0], output, prompt, numbers)[tokens[:, 0]]
    # float32 against float64.
    np.testing.assert_allclose(verified.sampling_logprobs[:, 0], np.log(newest), atol=1e-5)


def drafts_of(tokens: list[list[int]], valid: list[int]) -> Drafts:
    """Greedy drafts: each token stands first among its candidates, with probability 1."""
    first = jnp.asarray(tokens)
    others = jnp.broadcast_to(jnp.arange(VOCAB), (*first.shape, VOCAB))
    ids = jnp.where(others == 0, first[..., None], jnp.where(others == first[..., None], 0, others))
    return Drafts(first, ids, jnp.broadcast_to((jnp.arange(VOCAB) == 0) * 1.0, ids.shape), jnp.asarray(valid))


def run(logits: np.ndarray, drafts: Drafts, numbers: dict, forced: list[list[int]] | None = None):
    rows, T = logits.shape[:2]
    forced = jnp.full((rows, T), -1) if forced is None else jnp.asarray(forced)
    positions = jnp.tile(FIRST + jnp.arange(T), (rows, 1))
    seen = jnp.zeros((rows, VOCAB), jnp.int32)
    arguments = jnp.asarray(logits), drafts, forced, tiled(rows, **numbers), seeds_of(rows), positions, seen
    return jax.jit(verification.verify)(*arguments)


def test_greedy_accepts_the_first_maximum_and_nothing_else():
    logits = np.zeros((4, 3, VOCAB), np.float32)
    for t, (first, second) in enumerate([(4, 9), (6, 7), (5, 39)]):
        logits[:, t, [first, second]] = 2.0  # A tie.
    verified = run(logits, drafts_of([[4, 6], [4, 7], [9, 6], [4, 6]], [2, 2, 2, 1]), {})
    np.testing.assert_array_equal(verified.tokens, [[4, 6, 5], [4, 6, 0], [4, 0, 0], [4, 6, 0]])
    np.testing.assert_array_equal(verified.count, [2, 1, 0, 1])
    np.testing.assert_array_equal(verified.sampling_logprobs, np.zeros((4, 3)))


@pytest.mark.parametrize("numbers", [{}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0}], ids=str)
def test_a_forced_token_stands_whatever_the_logits_say(numbers):
    """Token 39 is the least likely one. A draft that agrees is accepted; one that does not is replaced by it."""
    logits = np.tile(np.linspace(8, -8, VOCAB, dtype=np.float32), (3, 2, 1))
    forced = [[39, -1], [39, -1], [-1, 39]]
    verified = run(logits, drafts_of([[39], [0], [0]], [1, 1, 0]), numbers, forced)
    np.testing.assert_array_equal(verified.count, [1, 0, 0])
    np.testing.assert_array_equal(verified.tokens[:2, 0], [39, 39])
    np.testing.assert_array_equal(verified.sampling_logprobs[:2, 0], [0.0, 0.0])
    assert verified.tokens[2, 0] != 39


@pytest.mark.parametrize("numbers", [{}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0}], ids=str)
def test_masked_drafts_change_nothing(numbers):
    """The token after them is the one that plain decoding draws, though the drafts would be accepted."""
    logits = np.random.default_rng(5).normal(size=(50, 3, VOCAB)).astype(np.float32)
    likely = np.argmax(logits[:, :2], axis=-1).tolist()
    masked = run(logits, drafts_of(likely, [0] * 50), numbers)
    plain = run(logits[:, :1], no_drafts(50), numbers)
    np.testing.assert_array_equal(masked.count, np.zeros(50))
    np.testing.assert_array_equal(masked.tokens[:, :1], plain.tokens)
    # Two programs, each of which may round its float32 sums otherwise.
    np.testing.assert_allclose(masked.sampling_logprobs[:, :1], plain.sampling_logprobs, rtol=1e-6)
    np.testing.assert_array_equal(masked.tokens[:, 1:], np.zeros((50, 2)))


def test_a_key_is_made_of_seed_position_and_purpose():
    seeds = jnp.asarray([[1, 2], [1, 3]], jnp.uint32)
    data = [
        jax.random.key_data(verification.keys(seeds, jnp.asarray([[4, 5], [4, 5]]), purpose)).reshape(-1, 2)
        for purpose in (verification.DRAFT, verification.ACCEPT, verification.SAMPLE)
    ]
    assert len(np.unique(np.concatenate(data), axis=0)) == 12
    alone = verification.keys(seeds[1:], jnp.asarray([5]), verification.SAMPLE)
    np.testing.assert_array_equal(jax.random.key_data(alone)[0], data[2][3])
