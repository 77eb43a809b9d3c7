"""Checkpoints come back exactly, damaged ones are skipped, and nothing starts afresh in silence."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from train.checkpoint import MANIFEST, Checkpoints
from train.state import TrainState, abstract, init_state


@pytest.fixture(scope="module")
def state(mesh):
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    weight = nnx.Param(jax.device_put(jnp.arange(12.0).reshape(3, 4), sharding))
    half = nnx.Param(jax.device_put(jnp.arange(4.0, dtype=jnp.bfloat16), sharding))
    return init_state(nnx.State({"a": {0: {"weight": weight}}, "half": half}), optax.adam(1e-3), mesh)


def at(state: TrainState, step: int) -> TrainState:
    """Returns the state with every number moved by the step."""
    return jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), state._replace(step=jnp.int32(0)))


@pytest.fixture
def saved(tmp_path, state):
    """A folder with checkpoints of the steps 2, 4 and 6."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (2, 4, 6):
        checkpoints.save(at(state, step), {"index": step})
    checkpoints.close()
    return tmp_path / "checkpoints"


def test_round_trip_is_exact(saved, state):
    checkpoints = Checkpoints(saved, keep=3)
    assert checkpoints.latest_whole_step() == 6
    got, data = checkpoints.restore(6, abstract(state))
    assert data == {"index": 6}
    assert jax.tree.structure(got) == jax.tree.structure(state)
    for g, w, like in zip(jax.tree.leaves(got), jax.tree.leaves(at(state, 6)), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(g, w)
        assert g.dtype == like.dtype and g.sharding == like.sharding


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut_short(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[:-1])


def remove_file(folder):
    largest_file(folder).unlink()


def cut_manifest(folder):
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:20])


def remove_manifest(folder):
    (folder / MANIFEST).unlink()


@pytest.mark.parametrize("damage", [cut_short, remove_file, cut_manifest, remove_manifest])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(saved, state, caplog, damage):
    damage(saved / "6")
    checkpoints = Checkpoints(saved, keep=3)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest_whole_step() == 4
    assert "6 is skipped" in caplog.text
    got, data = checkpoints.restore(4, abstract(state))
    assert data == {"index": 4} and int(got.step) == 4
    checkpoints.save(at(state, 6), {"index": 6})
    assert Checkpoints(saved, keep=3).latest_whole_step() == 6


def test_without_a_whole_checkpoint_nothing_starts_afresh(saved, state):
    before = sorted(path for path in saved.rglob("*"))
    for step in (2, 4, 6):
        cut_short(saved / str(step))
    with pytest.raises(ValueError, match=r"steps \[2, 4, 6\], but none is whole .*another --workdir"):
        Checkpoints(saved, keep=3).latest_whole_step()
    assert sorted(path for path in saved.rglob("*")) == before


def test_an_interrupted_first_save_is_no_checkpoint(tmp_path, state, caplog):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest_whole_step() is None
    checkpoints.save(at(state, 3), {})
    # As left by a kill between orbax's rename and the manifest.
    remove_manifest(tmp_path / "checkpoints" / "3")
    (tmp_path / "checkpoints.saving").write_text("3")
    with caplog.at_level(logging.WARNING):
        assert Checkpoints(tmp_path / "checkpoints", keep=2).latest_whole_step() is None
    assert "never finished" in caplog.text
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(at(state, 3), {})
    assert checkpoints.latest_whole_step() == 3


def test_old_checkpoints_go_after_the_new_one_is_whole(tmp_path, state):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    for step in (1, 2, 3):
        checkpoints.save(at(state, step), {})
        left = [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
        assert [path.name for path in left] == [str(step)]
        assert json.loads((left[0] / MANIFEST).read_text())
    assert not (tmp_path / "checkpoints.saving").exists()
