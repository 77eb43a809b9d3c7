"""Acceptance of MTP drafts against a count by hand over the logits."""

import numpy as np
import pytest

from qwen35_jax.inference.speculative import completion_acceptance, draft_acceptance


def count_by_hand(model, prompts, completions) -> tuple[int, int]:
    accepted = proposed = 0
    for prompt, completion in zip(prompts, completions, strict=True):
        text = np.zeros((1, 64), np.int32)
        text[0, : len(prompt) + len(completion)] = prompt + completion
        segments = np.zeros_like(text)
        segments[0, : len(prompt) + len(completion)] = 1
        drafts = np.asarray(model.mtp_logits(text, segments))[0].argmax(-1)
        for place in range(len(prompt), len(prompt) + len(completion) - 1):
            proposed += 1
            accepted += int(drafts[place - 1] == text[0, place + 1])
    return accepted, proposed


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
    assert want[1] == 19 + 0 + 29
    assert want[0] >= 20
    assert completion_acceptance(model, *texts) == want


def test_packed_documents_have_the_counts_of_documents_alone(model, texts):
    token_ids, segment_ids, mask = np.zeros((3, 1, 128), np.int32)
    place = 5
    for document, (prompt, completion) in enumerate(zip(*texts, strict=True), 1):
        end = place + len(prompt) + len(completion)
        token_ids[0, place:end], segment_ids[0, place:end] = prompt + completion, document
        mask[0, place + len(prompt) : end] = 1
        place = end
    assert draft_acceptance(model, token_ids, segment_ids, mask) == count_by_hand(model, *texts)


def test_wrong_shapes_are_named(model):
    with pytest.raises(ValueError, match="shapes"):
        draft_acceptance(model, np.zeros((1, 4), int), np.zeros((1, 4), int), np.zeros((1, 5), bool))
