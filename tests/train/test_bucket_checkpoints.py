"""Checkpoints in a bucket come back exactly, and a save counts only if the bucket kept all of it."""

import errno
import logging
import subprocess
import sys

import jax
import numpy as np
import pytest

from qwen35_jax.gcs import BucketError
from qwen35_jax.runs import COMMIT, MANIFEST, bucket_folder, find_damage
from tests.conftest import REPO
from tests.gcs.emulator import BUCKET, Fault
from tests.train.launching import environment
from tests.train.saving import at, make_small_state
from train.checkpoint import Checkpoints
from train.state import abstract


@pytest.fixture(scope="module")
def state(mesh):
    return make_small_state(mesh)


@pytest.fixture
def folder(place):
    return bucket_folder(place.address) / "checkpoints"


@pytest.fixture
def save(folder, state):
    """Saves these steps and waits until they are whole."""

    def save(*steps, **options):
        checkpoints = Checkpoints(folder, **{"keep": 3} | options)
        for step in steps:
            checkpoints.save(at(state, step), {"index": step})
        checkpoints.wait()
        return checkpoints

    return save


def check_restores(checkpoints, state, step):
    got, data = checkpoints.restore(step, abstract(state))
    assert data == {"index": step}
    assert jax.tree.structure(got) == jax.tree.structure(state)
    for g, w, like in zip(jax.tree.leaves(got), jax.tree.leaves(at(state, step)), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(g, w)
        assert g.dtype == like.dtype and g.sharding == like.sharding


def test_round_trip_is_exact_and_asks_for_no_more_rights_than_objects_need(place, folder, save, state):
    before = len(place.emulator.requests)
    save(2, 4, 6, keep=2).close()
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.whole_steps() == [4, 6] and checkpoints.latest_whole_step() == 6 and checkpoints.was_written
    check_restores(checkpoints, state, 6)
    assert not any(name.startswith("checkpoints/2/") for name in place.sizes())
    asked = {path.partition("?")[0] for _, path, _ in place.emulator.requests[before:]}
    # The bucket's own settings, for which the right storage.buckets.get would be needed.
    assert f"/storage/v1/b/{BUCKET}" not in asked and f"/storage/v1/b/{BUCKET}/storageLayout" not in asked


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("/data/metadata$", "data/metadata"),
        ("/state/_METADATA$", "state/_METADATA"),
        ("/state/manifest.ocdbt$", "state/manifest.ocdbt"),
        ("/state/d/", "state/d/"),
        ("/state/ocdbt.process_0/d/", "ocdbt.process_0/d/"),
        ("/ocdbt.process_0/manifest.ocdbt$", None),
        ("/array_metadatas/", "No ArrayMetadata"),
        ("/manifest.json$", MANIFEST),
        (f"/3/{COMMIT}$", COMMIT),
    ],
)
def test_a_save_of_which_the_bucket_loses_an_object_is_refused(place, folder, save, state, lost, said):
    save(2).close()
    place.fail(Fault("lose", "POST|PUT", name=lost))
    with pytest.raises(BucketError) as caught:
        save(3)
    message = str(caught.value)
    assert "\n" not in message and place.address in message and (said is None or said in message)
    assert caught.value.errno == errno.EIO  # exit code 74
    place.fail()
    checkpoints = Checkpoints(folder, keep=1)
    assert checkpoints.latest_whole_step() == 2
    check_restores(checkpoints, state, 2)
    checkpoints.save(at(state, 3), {"index": 3})
    checkpoints.close()
    check_restores(checkpoints, state, 3)
    assert checkpoints.whole_steps() == [3]


@pytest.mark.parametrize("lost", ["/_sharding$", f"/(state|data)/{COMMIT}$", "/_CHECKPOINT_METADATA$"])
def test_what_no_restore_needs_may_be_lost(place, save, state, lost):
    place.fail(Fault("lose", "POST|PUT", name=lost))
    checkpoints = save(3)
    place.fail()
    check_restores(checkpoints, state, 3)


def test_a_half_first_save_does_not_lock_the_run_out_and_goes_with_the_next(place, folder, save, state):
    save(3)
    for name in ("checkpoints/3/" + COMMIT, ".checkpoint-was-written"):
        place.delete(name)  # as a kill in the first save leaves it
    checkpoints = Checkpoints(folder, keep=1)
    assert checkpoints.latest_whole_step() is None and not checkpoints.was_written
    checkpoints.save(at(state, 5), {"index": 5})
    checkpoints.close()
    assert {name.split("/")[1] for name in place.sizes() if name.startswith("checkpoints/")} == {"5"}
    check_restores(checkpoints, state, 5)


def test_what_others_remove_is_noticed_at_once(place, folder, save, state, caplog):
    """Also by a process that has listed the folder before."""
    checkpoints = save(2, 4)
    assert checkpoints.whole_steps() == [2, 4]
    sizes = {name: size for name, size in place.sizes().items() if name.startswith("checkpoints/4/")}
    largest = max(sizes, key=sizes.get)  # orbax calls it alike in every step
    content = place.get(largest)
    place.delete(largest)
    assert find_damage(folder / "4") == f"{largest.removeprefix('checkpoints/4/')} is missing"
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest_whole_step() == 2
    assert f"{folder}/4 is skipped" in caplog.text
    place.put(largest, content)
    assert checkpoints.latest_whole_step() == 4
    for name in (largest, largest.replace("/4/", "/2/")):
        place.delete(name)
    with pytest.raises(ValueError, match=r"steps \[2, 4\], but none is whole .*another --workdir"):
        checkpoints.latest_whole_step()


def test_a_mark_stays_when_the_checkpoints_are_removed(place, folder, save):
    save(2).close()
    for name in place.sizes():
        if name.startswith("checkpoints/"):
            place.delete(name)
    checkpoints = Checkpoints(folder, keep=1)
    assert checkpoints.latest_whole_step() is None and checkpoints.was_written


@pytest.mark.parametrize("name", ["/d/", "/_METADATA$", "/manifest.json$"])
def test_a_refused_write_names_the_role_that_is_needed(place, save, name):
    place.fail(Fault("refuse", "POST|PUT", name=name, status=403, message="no storage.objects.create access"))
    with pytest.raises(BucketError, match=r"no storage.objects.create access.*role Storage Object User") as caught:
        save(3)
    assert caught.value.errno is None  # exit code 2


def test_a_service_that_fails_a_few_times_costs_nothing(place, save, state):
    place.fail(Fault("refuse", "POST|PUT", name="checkpoints", status=503, times=3))
    check_restores(save(3), state, 3)


SAVE = """
import logging
import sys
from functools import partial
import orbax.checkpoint as ocp
from qwen35_jax.command import one_line_errors
from qwen35_jax.runs import bucket_folder
from qwen35_jax.sharding import make_mesh
from tests.train.saving import make_small_state
from train.checkpoint import Checkpoints
from train.leave import leave_hanging_saves

logging.disable()
ocp.options.AsyncOptions = partial(ocp.options.AsyncOptions, timeout_secs=3)
with leave_hanging_saves(), one_line_errors():
    checkpoints = Checkpoints(bucket_folder(sys.argv[1]) / "checkpoints", keep=1)
    checkpoints.save(make_small_state(make_mesh()), {})
    checkpoints.wait()
"""


@pytest.mark.parametrize(
    ("status", "code", "said"), [(503, 74, "the storage service did not do it in time"), (403, 2, "the bucket refuses")]
)
def test_a_save_that_fails_ends_the_process_in_one_line(place, status, code, said):
    """Orbax gives up, but its threads would keep the process, and those of tensorstore complain."""
    place.fail(Fault("refuse", "POST|PUT", name="/d/", status=status))
    command = [sys.executable, "-c", SAVE, place.address]
    ended = subprocess.run(command, cwd=REPO, env=environment(devices=1), text=True, capture_output=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    # What tensorstore says before: that there are no credentials.
    assert ended.stderr.splitlines()[-1].startswith("error: ") and said in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
