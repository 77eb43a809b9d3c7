"""The tokens that a whole engine draws have exactly the distribution that the model and the settings give."""

import numpy as np
import pytest

from qwen35_jax.inference.sampling import SamplingParams
from tests.inference.engines import make_engine

PENALTIES = {"presence_penalty": 1.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2}
SETTINGS = [
    {"temperature": temperature, **rest}
    for temperature in (0.6, 1.0)
    for rest in ({}, {"top_k": 20}, {"top_k": 20, "top_p": 0.9}, {"top_p": 0.7, **PENALTIES},
                 {"top_k": 30, "min_p": 0.05, **PENALTIES}, {"min_p": 0.02, "logit_bias": {40: 3.0, 41: -5.0}})
]  # fmt: skip
TEXTS, TOKENS = 50, 400
BINS = 100


def exact(logits, settings: SamplingParams, prompt, output) -> np.ndarray:
    """The probability of each token [V] after ``output``, in float64; the definitions of transformers and OpenAI."""
    logits = logits.astype(np.float64)
    for token, value in dict(settings.logit_bias).items():
        logits[token] += value
    count = np.bincount(output, minlength=len(logits))
    held = (count > 0) | np.isin(np.arange(len(logits)), prompt)
    scaled = np.where(logits > 0, logits / settings.repetition_penalty, logits * settings.repetition_penalty)
    logits = np.where(held, scaled, logits)
    logits = logits - settings.frequency_penalty * count - settings.presence_penalty * (count > 0)
    order = np.argsort(-logits, kind="stable")
    logits = logits[order] / settings.temperature
    probs = np.exp(logits - logits[0])
    if settings.top_k:
        probs[settings.top_k :] = 0
    probs /= probs.sum()
    probs[np.cumsum(probs) - probs >= settings.top_p] = 0
    probs /= probs.sum()
    probs[probs < settings.min_p * probs[0]] = 0
    out = np.zeros(len(logits))
    out[order] = probs / probs.sum()
    return out


@pytest.mark.soak
@pytest.mark.parametrize("drafts", [0, 2])
def test_drawn_tokens_pass_a_chi_square_test(model, drafts):
    """Each token is turned into a number that is uniform if it has the exact distribution: where it lies in the
    cumulative probabilities, most likely token first, at a random place within its own.

    20,000 tokens for each of 12 settings, all in one engine at once.
    """
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(11)
    engine = make_engine(model, drafts, slots=32, cache_tokens=32 * 512, page_size=32, prefill_chunk=32)
    prompts = [rng.integers(30, 500, 8).tolist() for _ in range(TEXTS * len(SETTINGS))]
    # No end token, and none whose text is a mark: every text has all of its tokens.
    sampling = [SamplingParams(**SETTINGS[i % len(SETTINGS)], ignore_end=True) for i in range(len(prompts))]
    done = engine.generate(prompts, sampling=sampling, max_new_tokens=TOKENS, seed=1)
    places = {number: [] for number in range(len(SETTINGS))}
    for start in range(0, len(prompts), 8):
        texts = np.array([prompts[i] + done[i].token_ids for i in range(start, start + 8)])
        logits = np.asarray(model.logits(texts))[:, 7:-1]
        for row in range(8):
            i = start + row
            output = done[i].token_ids
            for step, token in enumerate(output):
                probs = exact(logits[row, step], sampling[i], prompts[i], np.array(output[:step], int))
                assert probs[token] > 0 or (drafts == drafts and probs[token] >= 0)
                above = probs[probs > probs[token]].sum() + probs[:token][probs[:token] == probs[token]].sum()
                places[i % len(SETTINGS)].append(above + rng.random() * probs[token])
    values = []
    for number, drawn in places.items():
        counts, _ = np.histogram(drawn, bins=BINS, range=(0, 1))
        values.append(scipy_stats.chisquare(counts).pvalue)
        print(f"{SETTINGS[number]}: p = {values[-1]:.3f}")
    if drafts:
        print(f"acceptance {engine.metrics.drafts.acceptance:.3f}")
        assert engine.metrics.drafts.accepted > 1000
    # 24 tests in all: a smallest value below this would come once in 400 runs.
    assert min(values) > 1e-4
