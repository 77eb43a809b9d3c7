"""Positions of images, videos and packed documents against transformers."""

import numpy as np
import pytest

from qwen35_jax.vision.mrope import mrope_positions
from tests.reference import tiny_config

IMAGE, VIDEO = 248056, 248057


def random_conversation(rng):
    """Draws text, images and videos in any order; returns ids and the grids in reading order with their kinds."""
    ids, grids = [], []
    for kind in rng.choice(["text", "image", "video"], size=rng.integers(1, 7)):
        # Text stands between any two frames, as the marks of vision do.
        ids += rng.integers(0, 1000, size=rng.integers(1, 6)).tolist()
        if kind == "text":
            continue
        frames = 1 if kind == "image" else int(rng.integers(1, 4))
        rows, columns = (2 * rng.integers(1, 5, size=2)).tolist()
        grids.append((kind, [frames, rows, columns]))
        for frame in range(frames):
            ids += [7] * int(frame > 0) + [IMAGE if kind == "image" else VIDEO] * (rows * columns // 4)
    return ids + rng.integers(0, 1000, size=rng.integers(0, 4)).tolist(), grids


def padded(rows):
    length = max(map(len, rows))
    ids = np.array([row + [0] * (length - len(row)) for row in rows], np.int32)
    return ids, np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int32)


def positions(ids, grids, segments=None):
    array = np.array([grid for _, grid in grids], np.int32).reshape(-1, 3)
    return mrope_positions(ids, array, segments, image_token=IMAGE, video_token=VIDEO)


def alone(conversation):
    ids, grids = conversation
    return positions(np.array([ids], np.int32), grids)


@pytest.fixture(scope="module")
def reference():
    """Returns ``get_rope_index`` without building a model: it reads nothing but the merge size."""
    torch = pytest.importorskip("torch", reason="the reference runs on torch")
    hf = pytest.importorskip("transformers.models.qwen3_5.modeling_qwen3_5", reason="compares with transformers")
    model = object.__new__(hf.Qwen3_5Model)
    object.__setattr__(model, "config", hf.Qwen3_5Config(vision_config=tiny_config().to_hf()["vision_config"]))

    def rope_index(ids, grids, mask):
        by_kind = {kind: [grid for each, grid in grids if each == kind] for kind in ("image", "video")}
        image_grids, video_grids = (torch.tensor(by_kind[kind]) if by_kind[kind] else None for kind in by_kind)
        kinds = torch.tensor((ids == IMAGE) + 2 * (ids == VIDEO), dtype=torch.int32)
        found, deltas = model.get_rope_index(
            torch.tensor(ids, dtype=torch.int64), kinds, image_grids, video_grids, torch.tensor(mask)
        )
        return found.numpy(), deltas.numpy()[:, 0] + mask.sum(axis=1)

    return rope_index


def test_500_random_mixes_equal_the_reference(reference):
    rng = np.random.default_rng(0)
    for _ in range(250):
        conversations = [random_conversation(rng), random_conversation(rng)]
        ids, mask = padded([ids for ids, _ in conversations])
        grids = [grid for _, each in conversations for grid in each]
        want, want_next = reference(ids, grids, mask)
        got, got_next = positions(ids, grids, mask)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(got_next, want_next)
        assert got.dtype == got_next.dtype == np.int32


def test_packed_documents_have_the_positions_of_each_alone():
    rng = np.random.default_rng(1)
    for _ in range(50):
        documents = [random_conversation(rng) for _ in range(3)]
        ids = [token for ids, _ in documents for token in ids] + [0] * 3
        segments = [n for n, (ids, _) in enumerate(documents, 1) for _ in ids] + [0] * 3
        got, after = positions(
            np.array([ids]), [grid for _, grids in documents for grid in grids], np.array([segments])
        )
        want = np.concatenate([alone(document)[0] for document in documents] + [np.zeros((3, 1, 3))], axis=2)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(after, alone(documents[-1])[1])


def test_images_without_text_between_them_are_told_apart():
    got, after = positions(np.array([[IMAGE] * 3]), [("image", [1, 2, 2]), ("image", [1, 2, 4])])
    assert got[:, 0].tolist() == [[0, 1, 1], [0, 1, 1], [0, 1, 2]]
    assert after.tolist() == [3]


def test_text_alone_counts_and_padding_stays_at_zero():
    got, after = positions(np.array([[5, 5, 5, 0], [0, 0, 0, 0]]), [], np.array([[1, 1, 2, 0], [0, 0, 0, 0]]))
    assert got.tolist() == [[[0, 1, 0, 0], [0, 0, 0, 0]]] * 3
    assert after.tolist() == [1, 0]
    assert positions(np.zeros((2, 0), np.int32), [])[1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("ids", "segments", "grids", "message"),
    [
        ([IMAGE, IMAGE], None, [[1, 2, 2]], "hold 2 pads.*need 1"),
        ([5, 5], None, [[1, 2, 2]], "hold 0 pads.*need 1"),
        ([IMAGE, 5, IMAGE], None, [[1, 2, 4]], "frame 1 .*needs 2 pads"),
        ([IMAGE, VIDEO], None, [[1, 2, 4]], "frame 1 .*needs 2 pads"),
        ([IMAGE, 5, IMAGE], None, [[2, 2, 2]], "frame 1 .*needs 1 pads"),
        ([IMAGE, IMAGE], [1, 2], [[1, 2, 4]], "frame 1 .*needs 2 pads"),
        ([IMAGE], None, [[1, 3, 2]], r"\[1, 3, 2\].*multiples of 2"),
        ([IMAGE], None, [[0, 2, 2]], r"\[0, 2, 2\]"),
    ],
)
def test_pads_that_do_not_fit_the_grids_are_refused(ids, segments, grids, message):
    segments = None if segments is None else np.array([segments])
    with pytest.raises(ValueError, match=message):
        mrope_positions(np.array([ids]), np.array(grids), segments, image_token=IMAGE, video_token=VIDEO)
