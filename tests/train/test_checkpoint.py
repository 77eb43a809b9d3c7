"""Checkpoints come back exactly, damaged ones are skipped, and nothing starts afresh in silence."""

import itertools
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from qwen35_jax.runs import MANIFEST, write_manifest
from qwen35_jax.sharding import make_mesh
from tests.train.saving import at, make_small_state
from train.checkpoint import Checkpoints
from train.state import abstract, init_state


@pytest.fixture(scope="module")
def state(mesh):
    return make_small_state(mesh)


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
    checkpoints.wait()
    assert Checkpoints(saved, keep=3).latest_whole_step() == 6


def test_without_a_whole_checkpoint_nothing_starts_afresh(saved, state):
    before = sorted(path for path in saved.rglob("*"))
    for step in (2, 4, 6):
        cut_short(saved / str(step))
    with pytest.raises(ValueError, match=r"steps \[2, 4, 6\], but none is whole .*another --workdir"):
        Checkpoints(saved, keep=3).latest_whole_step()
    assert sorted(path for path in saved.rglob("*")) == before


def test_an_interrupted_save_is_no_checkpoint(tmp_path, state):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.latest_whole_step() is None
    checkpoints.save(at(state, 3), {})
    checkpoints.close()
    # As left by a kill before the last rename, and by one while an old step is deleted.
    (folder / "3").rename(folder / "3.orbax-checkpoint-tmp")
    (folder / ".deleted-1").mkdir()
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.latest_whole_step() is None
    checkpoints.save(at(state, 3), {})
    checkpoints.close()
    assert [path.name for path in folder.iterdir()] == ["3"]
    assert Checkpoints(folder, keep=2).latest_whole_step() == 3


def test_old_checkpoints_go_after_the_new_one_is_whole(tmp_path, state):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, keep=1)
    for step in (1, 2, 3):
        checkpoints.save(at(state, step), {})
        assert step == 1 or (folder / str(step - 1) / MANIFEST).is_file()
    checkpoints.close()
    assert [path.name for path in folder.iterdir()] == ["3"]
    assert json.loads((folder / "3" / MANIFEST).read_text())


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("kinds", itertools.product(["absent", "whole", "damaged"], repeat=3))
def test_whole_checkpoints_are_kept_whatever_is_damaged_beside_them(tmp_path, kinds, keep):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=keep)
    by_step = dict(zip((2, 4, 6), kinds, strict=True))
    for step, kind in by_step.items():
        if kind != "absent":
            (checkpoints.directory / str(step)).mkdir()
            (checkpoints.directory / str(step) / "array").write_bytes(bytes(1000))
            write_manifest(checkpoints.directory / str(step))
        if kind == "damaged":
            cut_short(checkpoints.directory / str(step))
    whole = [step for step, kind in by_step.items() if kind == "whole"]
    checkpoints._make_room()
    assert checkpoints.whole_steps() == whole[-keep:]
    left = {int(path.name) for path in checkpoints.directory.iterdir()}
    newer = {step for step, kind in by_step.items() if kind == "damaged" and step > max(whole, default=0)}
    assert left == {*whole[-keep:]} | newer


def test_a_finished_save_is_remembered_when_its_checkpoint_is_gone(tmp_path, state):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    assert not checkpoints.was_written
    checkpoints.save(state, {})
    checkpoints.close()
    shutil.rmtree(tmp_path / "checkpoints")
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    assert checkpoints.latest_whole_step() is None and checkpoints.was_written


def test_the_best_stays_until_a_better_one_is_whole(tmp_path, state):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, keep=1, keep_every=4)
    scores = checkpoints.scores = {}
    left = []
    for step, score in ((1, 0.9), (2, 0.5), (3, 0.7), (4, 0.6), (5, 0.1), (6, 0.8)):
        scores[step] = score
        checkpoints.save(at(state, step), {})
        checkpoints.wait()
        left.append(checkpoints.whole_steps())
    checkpoints.close()
    assert left == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [4, 5, 6]]
    assert Checkpoints(folder, keep=1).whole_steps() == [4, 5, 6]


def test_a_state_may_be_consumed_as_soon_as_it_is_saved(tmp_path, mesh):
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    weight = jax.device_put(jnp.asarray(np.random.default_rng(0).normal(size=(512, 1024)).astype(np.float32)), sharding)
    want = np.array(weight)
    state = init_state(nnx.State({"weight": nnx.Param(weight)}), optax.sgd(1e-3), mesh)
    consume = jax.jit(lambda state: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state), donate_argnums=0)
    like = abstract(state)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(state, {})
    for _ in range(5):
        state = consume(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    got, _ = checkpoints.restore(0, like)
    np.testing.assert_array_equal(got.params["weight"][...], want)


def test_a_state_restores_onto_another_mesh(tmp_path, mesh):
    def shardings(mesh):
        return {name: jax.sharding.NamedSharding(mesh, spec) for name, spec in SPECS.items()}

    values = {name: np.arange(32.0, dtype=np.float32).reshape(4, 8) for name in SPECS}
    wide = make_mesh(fsdp=2, tensor=2)
    params = {name: nnx.Param(jax.device_put(values[name], place)) for name, place in shardings(wide).items()}
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(init_state(nnx.State(params), optax.adam(1e-3), wide), {})
    checkpoints.close()
    params = {name: nnx.Param(jax.device_put(0 * values[name], place)) for name, place in shardings(mesh).items()}
    got, _ = Checkpoints(tmp_path / "checkpoints", keep=1).restore(
        0, abstract(init_state(nnx.State(params), optax.adam(1e-3), mesh))
    )
    for name, value in values.items():
        np.testing.assert_array_equal(got.params[name][...], value)
        assert got.params[name][...].sharding.mesh.size == 1


SPECS = {"rows": jax.sharding.PartitionSpec("fsdp", None), "both": jax.sharding.PartitionSpec("fsdp", "tensor")}
