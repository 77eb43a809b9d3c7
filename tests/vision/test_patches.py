import numpy as np
import pytest

from qwen35_jax.vision.patches import Patches, bucket_size, pack_patches, patch_places


def test_places_follow_the_order_of_merged_blocks():
    frames, places = patch_places(np.array([[1, 2, 4], [2, 2, 2]]))
    assert frames.tolist() == [1] * 8 + [2] * 4 + [3] * 4
    assert places[:8, :2].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    assert {tuple(size) for size in places[:8, 2:]} == {(2, 4)}
    assert (places[8:12] == places[12:]).all() and {tuple(size) for size in places[8:, 2:]} == {(2, 2)}
    assert frames.dtype == places.dtype == np.int32


def test_places_lie_as_the_reference_reshapes_a_picture():
    rows, columns = 6, 4
    _, places = patch_places(np.array([[1, rows, columns]]))
    picture = np.arange(rows * columns).reshape(rows // 2, 2, columns // 2, 2)
    np.testing.assert_array_equal(places[:, 0] * columns + places[:, 1], picture.transpose(0, 2, 1, 3).reshape(-1))


def test_rows_are_padded_to_one_size():
    pixels = np.arange(24 * 3, dtype=np.uint8).reshape(24, 3)
    empty = np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.int32)
    packed = pack_patches([(pixels, np.array([[1, 2, 4], [2, 2, 4]])), empty])
    assert isinstance(packed, Patches) and packed.pixels.dtype == np.uint8
    assert packed.pixels.shape == (2, 256, 3) and packed.frames.shape == (2, 256) and packed.places.shape == (2, 256, 4)
    np.testing.assert_array_equal(packed.pixels[0, :24], pixels)
    assert packed.frames[0, :24].tolist() == [1] * 8 + [2] * 8 + [3] * 8
    assert not packed.frames[0, 24:].any() and not packed.frames[1].any()
    assert pack_patches([empty], capacity=8).frames.shape == (1, 8)


def test_sizes_are_few_and_hold_what_they_must():
    sizes = [bucket_size(n) for n in range(1, 65_537)]
    assert sorted(set(sizes))[:8] == [256, 512, 768, 1024, 1536, 2048, 3072, 4096]
    assert sizes[-1] == 65_536 and len(set(sizes)) == 16
    assert all(size >= n and size % 256 == 0 for n, size in enumerate(sizes, 1))


@pytest.mark.parametrize(
    ("rows", "capacity", "message"),
    [
        ([(np.zeros((8, 3)), [[1, 2, 3]])], None, r"\[1, 2, 3\].*multiples of 2"),
        ([(np.zeros((8, 3)), [[1, 2, 2]])], None, "row 0 has 8 patches, but its grids make 4"),
        ([(np.zeros((8, 3)), [[1, 2, 4]])], 4, "capacity=4.*8 patches"),
        ([(np.zeros((4, 3)), [[1, 2, 2]])], 6, "capacity=6.*multiple of 4"),
        ([(np.zeros((4, 3)), [[1, 2, 2]]), (np.zeros((4, 2)), [[1, 2, 2]])], None, "several kinds"),
        ([(np.zeros((4, 3)), [[1, 2, 2]]), (np.zeros((4, 3), np.uint8), [[1, 2, 2]])], None, "several kinds"),
        ([], None, "no rows"),
    ],
)
def test_wrong_rows_are_told_apart(rows, capacity, message):
    with pytest.raises(ValueError, match=message):
        pack_patches([(pixels, np.array(grids)) for pixels, grids in rows], capacity=capacity)
