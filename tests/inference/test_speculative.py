"""Acceptance of MTP drafts against a count by hand over the logits."""

import numpy as np
import pytest

from qwen35_jax.inference.speculative import acceptance_by_completion


def count_by_hand(model, prompts, completions) -> list[tuple[int, int]]:
    counts = []
    for prompt, completion in zip(prompts, completions, strict=True):
        text = np.zeros((1, 64), np.int32)
        text[0, : len(prompt) + len(completion)] = prompt + completion
        segments = np.zeros_like(text)
        segments[0, : len(prompt) + len(completion)] = 1
        drafts = np.asarray(model.mtp_logits(text, segments))[0].argmax(-1)
        places = range(len(prompt), len(prompt) + len(completion) - 1)
        counts.append((sum(int(drafts[place - 1] == text[0, place + 1]) for place in places), len(places)))
    return counts


@pytest.fixture(scope="module")
def texts(model):
    """Prompts, and completions half of whose tokens are what the MTP head itself predicts."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 512, length).tolist() for length in (3, 10, 7)]
    completions = [rng.integers(0, 512, length).tolist() for length in (20, 1, 30)]
    for prompt, completion in zip(prompts, completions, strict=True):
        for place in range(2, len(completion), 2):
            text = np.zeros((1, 64), np.int32)
            text[0, : len(prompt) + place] = prompt + completion[:place]
            drafts = np.asarray(model.mtp_logits(text, (np.arange(64) < len(prompt) + place)[None].astype(np.int32)))
            completion[place] = int(drafts[0, len(prompt) + place - 2].argmax())
    return prompts, completions


def test_counts_equal_the_count_by_hand(model, texts):
    want = count_by_hand(model, *texts)
    assert [proposed for _, proposed in want] == [19, 0, 29]
    assert sum(accepted for accepted, _ in want) >= 20
    for max_batch in (8, 2):
        assert acceptance_by_completion(model, *texts, max_batch=max_batch) == want
