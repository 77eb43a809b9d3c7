"""Rotary embedding and positions: against transformers, and against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.positions import count_positions, shift_left
from qwen35_jax.ops.rotary import apply_rotary, rotary_angles
from qwen35_jax.presets import PRESETS

SECTIONS = (11, 11, 10)


def test_matches_transformers_with_three_positions():
    torch = pytest.importorskip("torch", reason="the reference runs on torch")
    modeling = pytest.importorskip("transformers.models.qwen3_5.modeling_qwen3_5", reason="compares with transformers")
    from transformers import Qwen3_5TextConfig

    config = Qwen3_5TextConfig(rope_parameters=PRESETS["2b"].to_hf()["text_config"]["rope_parameters"])
    rng = np.random.default_rng(0)
    positions = rng.integers(0, 5000, (3, 2, 9))
    q = rng.normal(size=(2, 9, 4, 256)).astype(np.float32)
    rope = modeling.Qwen3_5TextRotaryEmbedding(config)
    cos, sin = rope(torch.zeros(1), torch.as_tensor(positions))
    want, _ = modeling.apply_rotary_pos_emb(*[torch.as_tensor(q).transpose(1, 2)] * 2, cos, sin)
    angles = rotary_angles(jnp.asarray(positions), theta=1e7, sections=SECTIONS)
    # Angles of up to 5,000 radians in float32 on both sides.
    np.testing.assert_allclose(apply_rotary(jnp.asarray(q), *angles), want.transpose(1, 2), rtol=0, atol=1e-3)


def test_equal_positions_are_plain_rotary_embedding():
    positions = jnp.arange(12).reshape(2, 6)
    one = rotary_angles(positions, theta=1e7, sections=SECTIONS)
    three = rotary_angles(jnp.stack([positions] * 3), theta=1e7, sections=SECTIONS)
    np.testing.assert_array_equal(one, three)


def test_each_axis_turns_only_its_own_frequencies():
    for axis, count in enumerate((11, 11, 10)):
        positions = np.zeros((3, 1, 1), int)
        positions[axis] = 1
        cos, _ = rotary_angles(jnp.asarray(positions), theta=10.0, sections=SECTIONS)
        turned = np.flatnonzero(cos[0, 0] != 1)
        assert len(turned) == count
        assert all(i % 3 == axis for i in turned if i < 30)


def test_positions_count_within_documents():
    segments = jnp.asarray([[0, 0, 1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 2, 2, 2, 2]])
    positions = np.where(segments > 0, count_positions(segments), 0)
    np.testing.assert_array_equal(positions, [[0, 0, 0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 0, 1, 2, 3]])


def test_positions_go_on_where_a_call_ended():
    segments = jnp.asarray([[1, 1, 2], [2, 2, 2]])
    got = count_positions(segments, jnp.asarray([1, 1]), jnp.asarray([7, 5]))
    np.testing.assert_array_equal(got, [[7, 8, 0], [0, 1, 2]])


@pytest.mark.parametrize(("steps", "want"), [(1, [2, 3, 0]), (2, [3, 0, 0]), (5, [0, 0, 0])])
def test_shift_left_moves_tokens_and_fills_with_zeros(steps, want):
    np.testing.assert_array_equal(shift_left(jnp.asarray([[1, 2, 3]]), steps), [want])
