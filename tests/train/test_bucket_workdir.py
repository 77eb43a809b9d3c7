"""The directory of a run in a bucket: who may use it, what is taken up from it, and what reaches it when."""

import dataclasses
import json

import pytest

from configs import tiny_sft
from qwen35_jax.cli import main
from qwen35_jax.gcs import BucketError
from qwen35_jax.runs import STATE, bucket_folder, read_data_state, read_metrics, read_record, stored_arrays
from tests.gcs.emulator import Fault
from tests.train.launching import wait_until
from tests.train.saving import at, make_small_state
from train.branch import find_origin
from train.bucket_workdir import BucketWorkdir
from train.checkpoint import Checkpoints
from train.lock import LOCK
from train.state import abstract


@pytest.fixture
def workdir(place):
    return BucketWorkdir(f"{place.address}/first/")


def test_an_empty_place_and_a_run_may_be_used(place, workdir):
    assert str(workdir) == f"{place.address}/first" and workdir.local.name == "first"
    workdir.check()
    # As a kill leaves it before the first save, and later.
    place.put("first/config.json", json.dumps({"recipe": {}}).encode())
    place.put("first/metrics.jsonl", b"")
    workdir.check()
    place.put("first/checkpoints/3/manifest.json", b"{}")
    place.delete("first/config.json")
    workdir.check()


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", b'{"hidden_size": 3}'), ("config.json", b"{"), ("notes.txt", b"")]
)
def test_a_place_that_holds_something_else_is_refused(place, workdir, name, content):
    place.put(f"first/{name}", content)
    with pytest.raises(ValueError, match=f"{place.address}/first is not empty and holds no training run"):
        workdir.check()
    assert set(place.sizes()) == {f"first/{name}"}


def test_a_bucket_that_does_not_exist_is_named(emulator):
    with pytest.raises(BucketError, match="gs://no-such-bucket/run: there is no such bucket"):
        BucketWorkdir("gs://no-such-bucket/run").check()


def test_the_bucket_decides_what_the_run_is(place, workdir):
    place.put("first/metrics.jsonl", b"theirs\n")
    place.put("first/plots/losses.png", b"large")
    workdir.local.mkdir(parents=True)
    for name in ("metrics.jsonl", "trackers.json"):
        (workdir.local / name).write_text("of an earlier process")
    with workdir.locked():
        assert [path.name for path in workdir.local.iterdir()] == ["metrics.jsonl"]
        assert (workdir.local / "metrics.jsonl").read_text() == "theirs\n"
        assert LOCK in workdir.names()
    assert LOCK not in workdir.names() and not workdir.local.parent.exists()


def test_files_reach_the_bucket_at_each_push_and_an_export_at_its_end(place, workdir):
    exported = ("export/config.json", "export/model.safetensors")
    with workdir.locked():
        for name in ("metrics.jsonl", "plots/losses.png", "wandb/run", *exported):
            (workdir.local / name).parent.mkdir(exist_ok=True)
            (workdir.local / name).write_text("a")
        workdir.push()
        assert place.sizes().keys() == {f"first/{name}" for name in (LOCK, "metrics.jsonl", "plots/losses.png")}
        (workdir.local / "metrics.jsonl").write_text("ab")
        before = len(place.emulator.requests)
        workdir.push()
        written = {name for method, _, name in place.emulator.requests[before:] if method == "POST"}
        assert written == {f"{place.prefix}first/metrics.jsonl"}
        workdir.publish_export()
    assert {name for name in place.sizes() if "export" in name} == {f"first/{name}" for name in exported}


def test_a_run_that_lost_its_place_writes_nothing_more(place, workdir, monkeypatch):
    monkeypatch.setattr("train.bucket_lock.BEAT_SECONDS", 0.05)
    with workdir.locked():
        place.put(f"first/{LOCK}", json.dumps({"token": "other", "host": "far", "pid": 1}).encode())
        wait_until(lambda: workdir._lock.is_lost)
        (workdir.local / "metrics.jsonl").write_text("a")
        for write in (workdir.push, workdir.publish_export):
            with pytest.raises(BucketError, match="belongs to another run now"):
                write()
    assert place.sizes().keys() == {f"first/{LOCK}"}


@pytest.mark.parametrize("name", ["metrics.jsonl", "export/config.json"])
@pytest.mark.parametrize("action", ["lose", "refuse"])
def test_a_push_that_fails_names_the_file(place, workdir, name, action):
    with workdir.locked():
        (workdir.local / "export").mkdir()
        (workdir.local / name).write_text("a")
        place.fail(Fault(action, "POST|PUT", name=f"/first/{name}$", status=403))
        with pytest.raises(BucketError, match=f"{place.address}/first/{name}.* (loses writes|refuses)"):
            workdir.publish_export() if name.startswith("export") else workdir.push()


def put_run(place, folder, name="moved"):
    for path in folder.rglob("*"):
        if path.is_file():
            place.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"{place.address}/{name}"


def test_checkpoints_may_be_moved_from_a_disk_to_a_bucket_and_back(place, mesh, tmp_path):
    state = make_small_state(mesh)
    on_disk = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    on_disk.save(at(state, 3), {"index": 3})
    on_disk.close()
    folder = bucket_folder(put_run(place, tmp_path / "run")) / "checkpoints"
    in_bucket = Checkpoints(folder, keep=2)
    assert in_bucket.latest_whole_step() == 3
    in_bucket.save(at(state, 4), in_bucket.restore(3, abstract(state))[1])
    in_bucket.close()
    for name in place.sizes():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(place.get(name))
    back = Checkpoints(tmp_path / "moved" / "checkpoints", keep=2)
    assert back.whole_steps() == [3, 4]
    got, data = back.restore(4, abstract(state))
    assert int(got.step) == 4 and data == {"index": 3}


def test_a_run_in_a_bucket_is_exported_as_one_on_a_disk(place, whole_run, tmp_path, capsys):
    run = put_run(place, whole_run[0])
    main(["export", run, "--out", str(tmp_path / "new")])
    assert "wrote step 9" in capsys.readouterr().out
    for path in (tmp_path / "new").rglob("*.safetensors"):
        assert path.read_bytes() == (whole_run[0] / "export" / path.relative_to(tmp_path / "new")).read_bytes()
    assert read_metrics(run, 9) == read_metrics(whole_run[0], 9) != {}


def test_a_run_may_begin_at_a_step_of_one_in_a_bucket(place, whole_run, workdir):
    run = put_run(place, whole_run[0])
    recipe = dataclasses.replace(tiny_sft.config().recipe, branch_from=f"{run}@6")
    model = read_record(run)["identity"]["model"]
    origin = find_origin(recipe, workdir.checkpoints, model=model)
    on_disk = whole_run[0] / "checkpoints" / "6"
    assert stored_arrays(origin.folder / STATE).keys() == stored_arrays(on_disk / STATE).keys()
    assert read_data_state(origin.folder) == read_data_state(on_disk)
    with pytest.raises(ValueError, match=r"no whole checkpoint of step 5, but of 6, 9"):
        find_origin(dataclasses.replace(recipe, branch_from=f"{run}@5"), workdir.checkpoints, model=model)


def test_what_is_no_run_is_refused_by_name(place, capsys):
    place.put("other/notes.txt", b"")
    place.put("half/config.json", json.dumps({"recipe": {"model": {"path": "base"}}}).encode())
    for name, said in (("none", "no object"), ("other", "no object"), ("half", "holds no whole checkpoint")):
        with pytest.raises(SystemExit) as stop:
            main(["export", f"{place.address}/{name}", "--out", "unused"])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == 2 and f"{place.address}/{name}" in error and said in error
