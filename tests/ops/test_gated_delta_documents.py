"""The gated delta rule over packed documents, padding, and sequences that are split between calls."""

import jax
import numpy as np
import pytest

from tests.ops.delta_rule import (
    CLOSE,
    CLOSE_GRAD,
    FORMS,
    NAMES,
    forward,
    gradients,
    random_inputs,
    random_weights,
    reference,
    small_chunks,
)


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("form", FORMS)
def test_any_split_gives_the_whole(form):
    inputs = random_inputs(5, T=72)
    want, want_state = forward(inputs, **small_chunks(form))
    state, outputs = inputs[5], []
    for start, stop in [(0, 1), (1, 33), (33, 65), (65, 72)]:
        part = tuple(x[:, start:stop] for x in inputs[:5])
        o, state = forward((*part, state), **small_chunks(form))
        outputs.append(o)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), want, **CLOSE)
    np.testing.assert_allclose(state, want_state, **CLOSE)


# Sequences of documents (id, length), for chunks of 16. Some documents are shorter than a chunk, share one with others,
# end with one, or span several. Padding stands before, after and between them, shorter and longer than a chunk.
SEQUENCES = [
    [(1, 5), (2, 1), (3, 10), (4, 40), (5, 16)],
    [(0, 3), (1, 13), (2, 20), (0, 18), (3, 11), (0, 7)],
    [(0, 30), (2, 7), (0, 1), (5, 33), (0, 1)],
    [(1, 72)],
    [(0, 72)],
]


@pytest.fixture(scope="module")
def packed():
    inputs = random_inputs(7, B=len(SEQUENCES), T=72)
    segment_ids = np.array([np.repeat(*zip(*documents, strict=True)) for documents in SEQUENCES], np.int32)
    padding = segment_ids == 0
    # The values at padding must not matter.
    for x in inputs[:3]:
        x[padding] = np.nan
    return inputs, segment_ids


def documents_of(segment_ids):
    """Yields for each document its sequence and slice, and whether it is the first and the last of its sequence."""
    for sequence, ids in enumerate(segment_ids):
        names = [i for i in np.unique(ids) if i]
        for i in names:
            where = np.flatnonzero(ids == i)
            yield sequence, slice(where[0], where[-1] + 1), i == names[0], i == names[-1]


@pytest.mark.parametrize("form", FORMS)
def test_packed_equals_alone(form, packed):
    inputs, segment_ids = packed
    weights = random_weights(inputs)
    o, state = forward(inputs, segment_ids, **small_chunks(form))
    grads = gradients(inputs, weights, segment_ids, **small_chunks(form))
    np.testing.assert_array_equal(np.asarray(o)[segment_ids == 0], 0)
    for grad in grads[:5]:
        np.testing.assert_array_equal(np.asarray(grad)[segment_ids == 0], 0)
    np.testing.assert_array_equal(state[4], inputs[5][4])  # only padding: the state passes
    np.testing.assert_array_equal(grads[5][4], weights[1][4])

    for sequence, where, is_first, is_last in documents_of(segment_ids):
        alone, alone_state, alone_grads = alone_document(inputs, weights, sequence, where, is_first, is_last)
        np.testing.assert_allclose(o[sequence, where], alone, **CLOSE)
        for name, got, want in zip(NAMES[:5], grads, alone_grads, strict=False):
            np.testing.assert_allclose(got[sequence, where], want, err_msg=name, **CLOSE_GRAD)
        if is_first:
            np.testing.assert_allclose(grads[5][sequence], alone_grads[5], **CLOSE_GRAD)
        if is_last:
            np.testing.assert_allclose(state[sequence], alone_state, **CLOSE)


def alone_document(inputs, weights, sequence, where, is_first, is_last):
    """Runs one document token by token, without segment ids, padded behind to the one compiled length."""
    length = inputs[0].shape[1]
    parts = [x[sequence : sequence + 1, where] for x in (*inputs[:5], weights[0])]
    n = parts[0].shape[1]
    parts = [np.pad(x, [(0, 0), (0, length - n)] + [(0, 0)] * (x.ndim - 2)) for x in parts]
    state = inputs[5][sequence : sequence + 1] * np.float32(is_first)
    document = (*parts[:5], state)
    o, final = forward(document, implementation="recurrent")
    grads = gradients(
        document, (parts[5], weights[1][sequence : sequence + 1] * np.float32(is_last)), implementation="recurrent"
    )
    return o[0, :n], final[0], [*(grad[0, :n] for grad in grads[:5]), grads[5][0]]


@pytest.mark.parametrize("form", FORMS)
def test_state_reaches_only_its_document(form):
    inputs = random_inputs(8, B=3, T=72)
    fresh = (*inputs[:5], np.zeros_like(inputs[5]))
    segment_ids = np.full((3, 72), 3, np.int32)
    segment_ids[:, :20] = 0
    o, state = forward(inputs, segment_ids, np.array([3, 2, 0]), **small_chunks(form))
    continued, continued_state = forward(inputs, segment_ids, **small_chunks(form))
    reset, reset_state = forward(fresh, segment_ids, **small_chunks(form))
    np.testing.assert_array_equal(o[0], continued[0])
    np.testing.assert_array_equal(o[1:], reset[1:])
    np.testing.assert_array_equal(state, np.stack([continued_state[0], *reset_state[1:]]))


@pytest.mark.parametrize("form", FORMS)
def test_a_single_token_respects_documents(form):
    inputs = random_inputs(9, B=3, T=1)
    fresh = (*inputs[:5], np.zeros_like(inputs[5]))
    o, state = forward(inputs, np.array([[4], [4], [0]]), np.array([4, 3, 4]), implementation=form)
    want, want_state = reference(*inputs)
    want_reset, want_reset_state = reference(*fresh)
    np.testing.assert_allclose(o, np.stack([want[0], want_reset[1], np.zeros_like(want[2])]), **CLOSE)
    np.testing.assert_allclose(state, np.stack([want_state[0], want_reset_state[1], inputs[5][2]]), **CLOSE)
